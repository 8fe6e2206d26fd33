"""`swag-trainer train` as a companion: progress, Ctrl-C, resumption, evaluation while it trains."""

import os
import shlex
import signal

import numpy as np
import pytest
import torch
from command_line import DEMO, demo_base, train
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from trajectories import same

from swag_trainer import SwagPosterior
from swag_trainer.cli.class_weights import balanced_weights, weighted_loss
from swag_trainer.cli.main import main
from swag_trainer.cli.training_interruption import SaveOnInterrupt
from swag_trainer.cli.unfinished_run import RUN_FILE, folder_of, plan
from swag_trainer.errors import SwagError

RECIPE = ["--dataset", str(DEMO), "--steps", "24", "--learning-rate", "2e-2", "--max-length", "24", "--snapshots", "6"]
SMALL = ["--train-rows", "60"]


@pytest.fixture
def ctrl_c(monkeypatch):
    """Sends this process SIGINT at the beginning of a step, as often as is said."""

    def at(step, times=1):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step and not self.requested:
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(SaveOnInterrupt, "on_step_begin", on_step_begin)

    before = signal.getsignal(signal.SIGINT)
    yield at
    assert signal.getsignal(signal.SIGINT) is before


def evaluation_losses(shown):
    return [float(line.split("loss ")[1].split(",")[0]) for line in shown.splitlines() if "evaluation loss" in line]


def test_an_interrupted_run_prints_the_command_that_ends_it_with_the_same_posterior(tmp_path, ctrl_c, capsys):
    # Red for: silence for the whole run; a run that Ctrl-C loses; a command that does not run, or that begins anew; other snapshots than
    # those of the uninterrupted run.
    train(tmp_path / "whole", *RECIPE[2:], *SMALL)
    shown = capsys.readouterr().err
    assert "24/24 [" in shown and "6/6 snapshots" in shown and "loss " in shown and "step/s" in shown
    assert "{'train_runtime'" not in shown
    folder = tmp_path / "cut off"
    ctrl_c(13)
    assert main(["train", demo_base(), *RECIPE, *SMALL, "--output", str(folder)]) == 130
    shown = capsys.readouterr().err
    assert "Interrupted after step 14 of 24" in shown and "Traceback" not in shown and "Press it again" in shown
    assert (folder / RUN_FILE).exists() and not (folder / "swag_posterior.safetensors").exists()
    command = shlex.split(shown.splitlines()[-1])
    assert command[0] == "swag-trainer"

    # Neither begun anew nor continued with other options unasked.
    assert main(["train", demo_base(), *RECIPE, *SMALL, "--output", str(folder)]) == 1
    assert "holds a run that was interrupted: --resume continues it" in capsys.readouterr().err
    assert main([*command[1:], "--learning-rate", "1e-2"]) == 1
    assert "was begun with --learning-rate 0.02, and is to go on with 0.01" in capsys.readouterr().err

    assert main(command[1:]) == 0
    shown = capsys.readouterr()
    assert "24/24 [" in shown.err and "6 snapshots" in shown.out and not (folder / RUN_FILE).exists()
    whole, resumed = SwagPosterior.from_pretrained(tmp_path / "whole"), SwagPosterior.from_pretrained(folder)
    assert same(whole, resumed) and whole.collection.steps == resumed.collection.steps
    assert main(command[1:]) == 0
    assert "finished already" in capsys.readouterr().err


def test_a_second_ctrl_c_stops_at_once_and_overwrite_begins_anew(tmp_path, ctrl_c, capsys):
    # Red for: a run that cannot be stopped, a record of a run of which nothing was saved, checkpoints of an earlier run that --resume
    # would take for those of this one.
    ctrl_c(3, times=2)
    assert main(["train", demo_base(), *RECIPE, *SMALL, "--output", str(tmp_path / "run")]) == 130
    shown = capsys.readouterr().err
    assert shown.splitlines()[-1] == "Interrupted." and not (tmp_path / "run" / RUN_FILE).exists()
    old = tmp_path / "run" / "checkpoint-9999"
    old.mkdir(parents=True)
    (old / "trainer_state.json").write_text("{}")
    ctrl_c(2)
    assert main(["train", demo_base(), *RECIPE, *SMALL, "--output", str(tmp_path / "run"), "--overwrite"]) == 130
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3"]


def test_runs_of_several_seeds_are_continued_where_they_stand(tmp_path):
    # Red for: a finished seed that is trained again, a seed that never began counted as finished because an old posterior is in its place.
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "swag_posterior.safetensors").write_text("new")
    (tmp_path / "seed-2").mkdir()
    (tmp_path / "seed-2" / "swag_posterior.safetensors").write_text("old")
    (tmp_path / "seed-2" / RUN_FILE).write_text('{"steps": 3}')
    folders = {seed: folder_of(seed, str(tmp_path)) for seed in (1, 2, 3)}
    runs = plan(folders, {"steps": 3}, resume=True, overwrite=False)
    assert [(run.is_finished, run.is_continued) for run in runs] == [(True, False), (False, True), (False, False)]
    with pytest.raises(SwagError, match="begun with --steps 3, and is to go on with 4"):
        plan(folders, {"steps": 4}, resume=True, overwrite=False)
    (tmp_path / "seed-2" / RUN_FILE).write_text("[")
    with pytest.raises(SwagError, match="the record of an interrupted run, cannot be read"):
        plan({2: folders[2]}, {}, resume=False, overwrite=False)


def test_a_run_stops_when_the_evaluation_gets_worse_and_saves_its_best_weights(tmp_path, ctrl_c, capsys):
    # Red for: --eval without an evaluation, a patience that is not kept or that a resumption begins anew, the last weights in the place of
    # the best.
    options = ["--eval", "validation", "--eval-steps", "3", "--patience", "3", "--final-weights", "trained", "--start", "0.1"]
    options += ["--learning-rate", "0.1", "--class-weights", "balanced"]
    assert main(["train", demo_base(), *RECIPE, *SMALL, *options, "--output", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().err
    losses = evaluation_losses(shown)
    best = losses.index(min(losses))
    assert len(losses) == best + 4 < 8 and "accuracy 0." in shown
    checkpoint = tmp_path / "run" / f"checkpoint-{3 * (best + 1)}"
    saved, chosen = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "run", checkpoint))
    assert saved.keys() == chosen.keys() and all(torch.equal(saved[key], chosen[key]) for key in saved)
    assert SwagPosterior.from_pretrained(tmp_path / "run").collection.steps[-1] <= 3 * len(losses)

    ctrl_c(3 * (best + 2) + 1)  # after the first evaluation that was no better
    again = ["train", demo_base(), *RECIPE, *SMALL, *options, "--output", str(tmp_path / "again")]
    assert main(again) == 130
    assert main([*again, "--resume"]) == 0
    assert evaluation_losses(capsys.readouterr().err) == losses
    assert [path.name for path in (tmp_path / "again").glob("checkpoint-*")] == [checkpoint.name]


def test_balanced_weights_are_the_loss_of_classes_of_one_size():
    # Red for: weights that are inverted, a weight that depends on the other examples of the batch, a loss that gradient accumulation scales.
    targets = np.array([0] * 6 + [1] * 3 + [2])
    weights = balanced_weights(targets, 3)
    np.testing.assert_allclose(weights * [6, 3, 1], len(targets) / 3)
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.as_tensor(targets)
    each = cross_entropy(logits, labels, reduction="none")
    expected = torch.stack([each[labels == label].mean() for label in range(3)]).mean()
    loss = weighted_loss(weights)
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    parts = [loss({"logits": logits[part]}, labels[part], num_items_in_batch=10) for part in (slice(0, 7), slice(7, 10))]
    torch.testing.assert_close(sum(parts), expected)
    assert balanced_weights(np.array([0, 0, 2]), 4).tolist() == [3 / 8, 0, 3 / 4, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "-3"], "--steps must be at least 1, got -3"),
        (["--training", '{"num_train_epochs": 3}'], "'num_train_epochs' has an option of its own, --epochs"),
        (["--training", '{"eval_strategy": "steps"}'], "has an option of its own, --eval"),
        (["--steps", "5", "--epochs", "2"], "both set the length of the run"),
        (["--epochs", "0"], "--epochs must be a number above 0, got 0"),
        (["--learning-rate", "-1"], "--learning-rate must be a number above 0, got -1"),
        (["--learning-rate", "nan"], "--learning-rate must be a number above 0, got nan"),
        (["--lora-dropout", "1"], "is a probability below 1, got 1"),
        (["--seeds", "-1"], "--seeds: seeds are numbers from 0 to"),
        (["--snapshots", "1"], "must be at least 2, got 1"),
        (["--patience", "2"], "--patience needs --eval"),
        (["--eval", "train"], "weights are not chosen on what they were trained on"),
        (["--eval", "validation", "--save-steps", "10", "--eval-steps", "4"], "must be a multiple of --eval-steps"),
        (["--dtype", "float12"], "--dtype is one of float32, bfloat16, float16, float64, auto, got 'float12'"),
    ],
)
def test_an_impossible_recipe_is_refused_before_anything_is_loaded(tmp_path, options, words, capsys):
    # Red for: a run of another length than was asked for, or an error after the data and the model were loaded.
    assert main(["train", "user/no-such-model", "--dataset", str(DEMO), "--output", str(tmp_path / "run"), *options]) == 1
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown and not (tmp_path / "run").exists()


def test_a_number_of_epochs_is_the_length_of_the_run(tmp_path, capsys):
    # Red for: epochs that the default number of steps overrules.
    options = ["--epochs", "2", "--batch-size", "10", "--snapshots", "2"]
    recipe = [*RECIPE[:2], *RECIPE[4:8], *SMALL]
    assert main(["train", demo_base(), *recipe, *options, "--output", str(tmp_path / "run")]) == 0
    assert SwagPosterior.from_pretrained(tmp_path / "run").collection.last_step == 12
