"""Runs that are cut off, and what their checkpoints are worth: SIGTERM, weights alone, one checkpoint at a time."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import lora_model, trainer_for
from safetensors.torch import load_file
from trajectories import Witness, assert_posterior_of, same
from transformers import BertTokenizerFast, TrainerCallback

from swag_trainer import Every, SwagCallback, SwagError, SwagPosterior
from swag_trainer.collection.checkpoints import last_complete_checkpoint
from swag_trainer.collection.records import MOMENTS_FILE
from swag_trainer.posterior.folder import POSTERIOR_FILE

EVERY_3 = Every(steps=3, start=0.25)
DUE = [6, 9, 12, 15, 18, 21, 24]  # in a run of 24 steps, 6 to an epoch


@pytest.fixture
def run(base_folder, rows, tokenizer, tmp_path):
    """Train a fresh model in ``tmp_path/<folder>``: (trainer, callback, witness)."""

    def start(folder="run", *, before=(), callbacks=(), resume=None, watch=None, **arguments):
        swag, witness = SwagCallback(EVERY_3, rank=3), Witness()
        trainer = trainer_for(
            lora_model(base_folder),
            rows,
            tokenizer,
            tmp_path / folder,
            callbacks=[*before, witness, swag, *callbacks],
            **arguments,
        )
        if watch:
            watch(trainer)
        trainer.train(resume_from_checkpoint=resume and str(resume))
        return trainer, swag, witness

    return start


class Terminate(TrainerCallback):
    """Sends this process the signal that a scheduler sends before it takes the machine away, once, at one event."""

    def __init__(self, event, step):
        self.step, self.manager = step, None
        setattr(self, event, self.send)

    def watch(self, trainer):
        self.manager = next(
            callback.jit_manager for callback in trainer.callback_handler.callbacks if hasattr(callback, "jit_manager")
        )
        self.manager.kill_wait = 0  # seconds; 3 by default

    def send(self, args, state, control, **kwargs):
        if state.global_step != self.step:
            return
        os.kill(os.getpid(), signal.SIGTERM)
        while not self.manager.is_checkpoint_requested:  # a timer's thread sets it
            time.sleep(0.001)


@pytest.fixture
def sigterm_restored():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def uninterrupted(base_folder, texts, tmp_path_factory):
    """The posterior of the run that nobody interrupts."""
    tokenizer = BertTokenizerFast.from_pretrained(base_folder)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    swag = SwagCallback(EVERY_3, rank=3)
    trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path_factory.mktemp("whole"), callbacks=[swag]).train()
    return swag.posterior


# The Trainer serves the signal at the next of its own four events, before any callback of the user's has its turn. It resumes such a
# checkpoint exactly, except where it was made between gradient and step, or at the beginning of an epoch.
@pytest.mark.parametrize(
    ("event", "step", "checkpoint", "exact"),
    [
        pytest.param(
            "on_optimizer_step", 14, 15, True, marks=pytest.mark.slow
        ),  # served in on_step_end of step 15, before its collection
        ("on_step_end", 15, 15, True),  # in on_step_begin of the next step
        pytest.param("on_step_end", 16, 16, True, marks=pytest.mark.slow),  # likewise, between two collections
        ("on_optimizer_step", 17, 18, True),  # in on_step_end of the last step of an epoch, before its collection
        pytest.param("on_step_end", 18, 18, True, marks=pytest.mark.slow),  # in on_epoch_end
        ("on_step_begin", 15, 15, False),  # in on_pre_optimizer_step: the Trainer has drawn the dropout of step 16
        pytest.param(
            "on_epoch_begin", 18, 18, False, marks=pytest.mark.slow
        ),  # in the first on_step_begin of an epoch: it has shuffled the data
    ],
)
def test_a_checkpoint_made_on_sigterm_loses_no_snapshot(
    run, uninterrupted, sigterm_restored, tmp_path, event, step, checkpoint, exact
):
    # Red for: moments written in on_save, which SIGTERM does not fire; a snapshot lost that was due at the checkpoint's step, or
    # counted again at the resume.
    terminate = Terminate(event, step)
    saved = []

    class Saved(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saved.append(state.global_step)

    _, _, first = run(callbacks=[terminate, Saved()], watch=terminate.watch, enable_jit_checkpoint=True)
    assert not saved and max(first.weights) <= checkpoint + 1
    folder = tmp_path / "run" / f"checkpoint-{checkpoint}"
    assert last_complete_checkpoint(tmp_path / "run") == str(folder)
    _, resumed, second = run(resume=folder)
    assert min(second.weights) == checkpoint + 1
    second.weights |= {moment: weights for moment, weights in first.weights.items() if moment <= checkpoint}
    assert_posterior_of(resumed.posterior, second, DUE)
    assert same(resumed.posterior, uninterrupted) == exact


def test_a_run_that_sigterm_ended_says_what_it_had(run, sigterm_restored, tmp_path):
    # Red for: a last words' posterior that lacks its latest snapshot, or lies beside another adapter.
    terminate = Terminate("on_optimizer_step", 14)
    _, swag, witness = run(callbacks=[terminate], watch=terminate.watch, enable_jit_checkpoint=True)
    assert_posterior_of(swag.posterior, witness, [6, 9, 12, 15])
    assert same(SwagPosterior.from_pretrained(tmp_path / "run"), swag.posterior)


def test_a_checkpoint_of_weights_alone_holds_its_moments_and_cannot_be_collected_on_from(run, tmp_path):
    # Red for: a posterior half of whose snapshots come from a run that began anew with a fresh optimizer at the first learning rate.
    arguments = {"save_strategy": "steps", "save_steps": 4, "save_only_model": True}
    run(**arguments)
    folder = tmp_path / "run"
    assert [(folder / f"checkpoint-{step}" / MOMENTS_FILE).exists() for step in (4, 8, 24)] == [False, True, True]
    with pytest.raises(SwagError, match=r"step 8 .*1 collections.*save_only_model"):
        run(resume=folder / "checkpoint-8", **arguments)
    (folder / POSTERIOR_FILE).unlink()
    # Before the first collection the Trainer's fresh start is no matter of ours: the posterior is that of the resumed run.
    _, swag, witness = run(resume=folder / "checkpoint-4", **arguments)
    assert_posterior_of(swag.posterior, witness, DUE)


class Inspect(TrainerCallback):
    """Looks, after every save, at the checkpoints there are; stops the run hard at a step."""

    def __init__(self, die_after=None):
        self.seen, self.die_after = {}, die_after

    def on_save(self, args, state, control, **kwargs):
        folders = sorted(Path(args.output_dir).glob("checkpoint-*"))
        self.seen[state.global_step] = {int(folder.name.split("-")[1]): (folder / MOMENTS_FILE).exists() for folder in folders}

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.die_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("die_after", [7, 10, pytest.param(22, marks=pytest.mark.slow)])
def test_with_one_checkpoint_at_a_time_that_one_has_the_moments_and_a_cut_off_run_goes_on_exactly(
    run, uninterrupted, tmp_path, die_after
):
    # Red for: moments written after the older checkpoint is gone, or into the older one.
    arguments = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    inspect = Inspect(die_after)
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[inspect], **arguments)
    assert inspect.seen == {step: {step: step >= 6} for step in range(1, die_after + 1)}
    inspect = Inspect()
    _, resumed, _ = run(callbacks=[inspect], resume=last_complete_checkpoint(tmp_path / "run"), **arguments)
    assert same(resumed.posterior, uninterrupted)
    assert inspect.seen == {step: {step: True} for step in range(die_after + 1, 25)}


def test_the_best_checkpoint_that_is_kept_keeps_its_own_moments(run, rows, tmp_path):
    # Red for: moments of the last step in the checkpoint of the best one.
    class Best(TrainerCallback):
        """Decides that step 9 was the best."""

        def on_evaluate(self, args, state, control, *, metrics, **kwargs):
            metrics["eval_loss"] = float(state.global_step != 9)

    arguments = {
        "before": [Best()],
        "eval_rows": rows[:4],
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
    }
    trainer, swag, witness = run(**arguments)
    assert trainer.state.best_global_step == 9
    assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-9"]
    assert_posterior_of(swag.posterior, witness, DUE)
    adapter = load_file(tmp_path / "run" / "checkpoint-9" / "adapter_model.safetensors")
    assert all(torch.equal(adapter[key], weight) for key, weight in witness.weights[9].items())
    _, resumed, _ = run(resume=tmp_path / "run" / "checkpoint-9", **arguments)
    assert same(resumed.posterior, swag.posterior)


def test_a_run_that_is_started_anew_leaves_the_checkpoints_of_earlier_runs_alone(run, tmp_path):
    # Red for: moments of the run that was cut off, written into an old checkpoint of that step when the Trainer makes its next state.
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 9 and not self.done:
                self.done = True
                raise KeyboardInterrupt

        done = False

    run(save_strategy="steps", save_steps=9)
    checkpoint = tmp_path / "run" / "checkpoint-9"
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    trainers = []
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Interrupt()], watch=trainers.append, seed=1)
    trainers[0].train()
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
