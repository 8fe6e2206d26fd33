"""`swag-trainer train --members`: several trainings, one mixture, on one process or on several."""

import os
import shutil
import threading

import pytest
import torch
import torch.distributed as dist
from command_line import DEMO, train
from torchrun import two_processes
from transformers import AutoTokenizer

from swag_trainer import PosteriorMixture, load_posterior
from swag_trainer.cli import train as training
from swag_trainer.cli.main import main
from swag_trainer.cli.member_processes import MemberProcesses, working_apart
from swag_trainer.cli.splits import balanced
from swag_trainer.cli.unfinished_run import RUN_FILE
from swag_trainer.errors import SwagError
from swag_trainer.evaluation.measurement import Measurement

RECIPE = ["--steps", "12", "--snapshots", "4", "--seed", "4", "--members", "3"]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A folder with a mixture of three members, which tests must not write into."""
    folder = tmp_path_factory.mktemp("members") / "run"
    train(folder, *RECIPE)
    return folder


def test_members_become_one_mixture_and_finished_ones_are_not_trained_again(mixture, tmp_path, monkeypatch, capsys):
    # Red for: members of one seed, other examples for each, a mixture of other weights than theirs, a member that is trained a second time,
    # a run that counts as finished because an earlier mixture is in its place.
    posterior = load_posterior(mixture)
    assert (posterior.title, len(posterior.members), posterior.member_weights) == ("MultiSWAG", 3, (1 / 3,) * 3)
    alone = [load_posterior(mixture / f"seed-{seed}") for seed in (4, 5, 6)]
    assert all(
        torch.equal(one.mean_vector(), member.mean_vector()) for one, member in zip(alone, posterior.members, strict=True)
    )
    assert not torch.equal(alone[0].mean_vector(), alone[1].mean_vector())
    assert AutoTokenizer.from_pretrained(mixture).model_max_length == 24 and not (mixture / RUN_FILE).exists()

    capsys.readouterr()
    assert main(["inspect", str(mixture)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        shown.count("num collected 4") == 3 and "deviation_norms" not in shown
    )  # a line or two for each member, not its trajectory

    folder = shutil.copytree(mixture, tmp_path / "run")
    train(folder, *RECIPE, "--resume")
    assert f"{folder}: finished already" in capsys.readouterr().err
    (folder / RUN_FILE).write_text("{}")
    command = ["train", "no/model", "--dataset", str(DEMO), "--output", str(folder), *RECIPE]
    assert main([*command, "--resume"]) == 1
    assert "was begun with --dataset None" in capsys.readouterr().err
    (folder / RUN_FILE).unlink()
    (folder / "swag_posterior.safetensors").unlink()
    shutil.rmtree(folder / "seed-5")
    chosen_by = []
    monkeypatch.setattr(training, "balanced", lambda *given: chosen_by.append(given[2]) or balanced(*given))
    train(folder, *RECIPE, "--resume")
    shown = capsys.readouterr()
    assert "seed-4: finished already" in shown.err and "seed-6: finished already" in shown.err
    assert "seed-5: 4 snapshots" in shown.out and "seed-4: 4 snapshots" not in shown.out
    assert "MultiSWAG of 3 members with the weights 0.333, 0.333, 0.333" in shown.out
    assert load_posterior(folder).digest == posterior.digest and chosen_by == [4]

    for options, words in (
        (["--members", "2", "--resume"], "holds a mixture of 3 members already, and --members is 2"),
        ([], "holds a posterior already"),
        (["--seeds", "1", "2"], "does not go with --members"),
        (["--members", "1"], "--members is the number of members of a mixture, 2 to 64, got 1"),
    ):
        assert main([*command, *options]) == 1
        assert words in capsys.readouterr().err
    assert (
        main(["train", "no/model", "--dataset", str(DEMO), "--output", str(tmp_path / "x"), "--seeds", "1", "--seed", "2"]) == 1
    )
    assert "does not go with --seed:" in capsys.readouterr().err


def test_comparators_of_a_mixture_are_measured_by_one_command_and_stand_on_its_card(mixture, tmp_path, capsys):
    # Red for: a mixture that another command cannot read, MAP at the mean, an ensemble that counts as one training, costs that the card lacks.
    data, methods = ["--dataset", str(DEMO)], ["MAP", "MultiSWA", "MultiSWAG", "Ensemble", "Laplace (head)"]
    fitting = [
        "--split",
        "test",
        "--validation-split",
        "validation",
        "--train-split",
        "train",
        "--ood",
        str(DEMO),
        "--ood-split",
        "test",
        "--methods",
        *methods,
    ]
    options = ["--num-samples", "3", "--num-resamples", "2", "--output", str(tmp_path / "results.json")]
    assert main(["evaluate", str(mixture), *data, *fitting, *options]) == 0
    shown = capsys.readouterr()
    measured = Measurement.read(tmp_path / "results.json")
    assert list(measured.methods) == methods
    trainings = {name: method.num_trainings for name, method in measured.methods.items()}
    assert (trainings["MAP"], trainings["Ensemble"], trainings["MultiSWAG"], trainings["Laplace (head)"]) == (1, 3, 3, 1)
    assert measured.map_weights == "last" and measured.methods["Laplace (head)"].fit_seconds > 0
    assert {"nll", "ece", "brier", "aurc", "augrc", "auroc_entropy"} <= set(measured.metrics["Ensemble"])
    assert "trainings" in shown.out and "AUGRC" in shown.out and "MultiSWA " not in shown.out.splitlines()[-1]
    assert (
        main(["card", str(mixture), "--results", str(tmp_path / "results.json"), "--output", str(tmp_path / "README.md")]) == 0
    )
    card = (tmp_path / "README.md").read_text()
    assert "seconds to fit" in card and "| Ensemble |" in card and "NLL of MultiSWAG against" in card
    capsys.readouterr()
    assert main(["evaluate", str(mixture), *data, "--methods", "MultiSWAG", "Magic"]) == 1
    assert "'MultiSWA', 'MultiSWAG', " in capsys.readouterr().err


def test_processes_share_the_members_and_the_first_waits_for_the_others(monkeypatch):
    # Red for: a member that two processes train or none, an error elsewhere that the first waits for for ever, a Trainer that finds the
    # other processes and averages gradients with them.
    store = dist.HashStore()
    first, second = (MemberProcesses(index, 2, store) for index in range(2))
    assert (first.own([7, 8, 9]), second.own([7, 8, 9])) == ([7, 9], [8])
    done = threading.Thread(target=lambda: first.wait_for("trained", range(2)))
    done.start()
    with second.announced("trained"):
        assert done.is_alive()
    done.join(20)
    assert not done.is_alive()
    with pytest.raises(ValueError, match="no model"), second.announced("planned"):
        raise ValueError("no model")
    with pytest.raises(SwagError, match="Process 1 of 2 failed. ValueError: no model"):
        first.wait_for("planned", range(2))
    MemberProcesses().wait_for("trained", range(1))

    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "5,7"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "rendezvous", lambda url, index, count: iter([(store, index, count)]))
    with working_apart() as processes:
        assert (processes.index, processes.count) == (1, 2)
        assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(os.environ) and os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    assert {name: os.environ[name] for name in launched} == launched


@pytest.mark.slow
def test_two_processes_train_the_same_members_as_one(base_folder, tmp_path):
    # Red for: gradients averaged over the processes, a member that no process trains, a mixture before the last member is there.
    data = tmp_path / "data.csv"
    data.write_text(
        "text,label\n" + "".join(f"{'good film' if i % 2 else 'bad plot'} so {i},{'ab'[i % 2]}\n" for i in range(40))
    )
    options = [str(base_folder), "--dataset", str(data), "--steps", "6", "--snapshots", "3", "--members", "3"]
    assert main(["train", *options, "--output", str(tmp_path / "one")]) == 0
    results = two_processes("cli/members_worker.py", "train", folder=tmp_path / "two", options=options)
    assert [result["train"] for result in results] == [0, 0]
    one, two = (PosteriorMixture.from_pretrained(tmp_path / path) for path in ("one", "two/train/run"))
    assert one.digest == two.digest
