"""Paths that do not exist, devices and precisions that are not there: refused in one sentence before anything is loaded."""

import pytest
import torch
from command_line import DEMO

from swag_trainer.cli.devices import check_device
from swag_trainer.cli.main import main
from swag_trainer.cli.paths import looks_like_path
from swag_trainer.errors import SwagError

DATA = ["--dataset", str(DEMO)]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["predict", "./nofolder", "text"], "There is no file or folder './nofolder', which MODEL names."),
        (["predict", "./rum", "text"], "which MODEL names. Did you mean 'run'?"),
        (["train", "./nofolder", *DATA, "--output", "o"], "'./nofolder', which MODEL names."),
        (
            ["train", "user/base", "--dataset", "tikets.csv", "--output", "o"],
            "which --dataset names. Did you mean 'tickets.csv'?",
        ),
        (["tune", "/nowhere/run", *DATA], "There is no folder '/nowhere' either."),
        (["evaluate", "./nofolder", *DATA], "'./nofolder', which MODEL names."),
        (["evaluate", "user/model", *DATA, "--ood", "ood.tsv"], "'ood.tsv', which --ood names."),
        (["evaluate", "user/model", *DATA, "--base-model", "../base"], "'../base', which --base-model names."),
        (["fit", "a/b/c", *DATA, "--output", "o"], "'a/b/c', which MODEL names."),
        (["collect", "./nofolder", "--output", "o"], "'./nofolder', which CHECKPOINTS names."),
        (["mix", "./run", "./nofolder", "--output", "o"], "'./nofolder', which MEMBERS names."),
        (["inspect", "nofolder/"], "'nofolder/', which MODEL names."),
        (["card", "./nofolder"], "'./nofolder', which MODEL names."),
        (["push", "./nofolder", "--repo", "user/x"], "'./nofolder', which MODEL names."),
        (["serve", "./nofolder"], "'./nofolder', which MODEL names."),
        (["predict", "user/model", "--file", "tikets.csv"], "There is no file 'tikets.csv'. Did you mean 'tickets.csv'?"),
    ],
)
def test_a_path_that_is_not_there_is_named_with_its_neighbour(command, words, tmp_path, monkeypatch, capsys):
    # Red for: "Repo id must use alphanumeric chars", or a Hub that is asked for a file of this machine.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "tickets.csv").write_text("text,label\n")
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: pytest.fail("the Hub was asked"))
    assert main(command) == 1
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown and not (tmp_path / "o").exists()


def test_a_name_that_may_be_a_repository_is_looked_for_on_the_hub_and_both_places_are_named(tmp_path, monkeypatch, hub, capsys):
    # Red for: a message about a repository alone, where a folder's name was mistyped.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets-run").mkdir()
    for command, words in (
        (
            ["predict", "user/ticket-run", "text"],
            "There is no repository 'user/ticket-run' on the Hub and no folder of that name here",
        ),
        (["train", "ticket-run", *DATA, "--output", "o"], "The base model 'ticket-run' cannot be loaded"),
        (["train", "user/base", "--dataset", "ticket-run", "--output", "o"], "There is no file or folder 'ticket-run' here"),
    ):
        assert main(command) == 1
        shown = capsys.readouterr().err
        assert words in shown and "Traceback" not in shown
        assert command[0] == "predict" or "Did you mean 'tickets-run'?" in shown


def test_ids_of_repositories_are_not_taken_for_paths():
    # Red for: a base model on the Hub that is refused as a missing folder.
    for name in ("bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2", "user/data:config", "user/v1.5", "a text.txt"):
        assert not looks_like_path(name)
    for path in ("./run", "/tmp/run", "~/run", "a/b/c", "run/", "tickets.csv", "C:\\run"):
        assert looks_like_path(path)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["predict", "user/model", "text", "--device", "cuda:97"], "--device 'cuda:97': this machine has no such device"),
        (["tune", "user/model", *DATA, "--device", "gpu"], "--device 'gpu' is not a device. This machine has cpu"),
        (["evaluate", "user/model", *DATA, "--device", "meta"], "--device 'meta': this machine has no such device"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(command, words, capsys):
    # Red for: a traceback of PyTorch after a minute of loading.
    assert main(command) == 1
    assert words in capsys.readouterr().err


def test_the_devices_of_the_machine_are_accepted(monkeypatch):
    # Red for: "cuda" refused where there is one, or its second one accepted.
    check_device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    check_device("cuda")
    check_device("cuda:0")
    with pytest.raises(SwagError, match="It has cpu, cuda:0"):
        check_device("cuda:1")
