"""The private and undocumented parts of transformers that the collection relies on, and the Trainer that hands itself over."""

import logging

import pytest
import torch
from conftest import lora_model, trainer_for
from test_callback import LATE, Reporter
from transformers import DefaultFlowCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from swag_trainer import SwagCallback, SwagTrainerMixin
from swag_trainer.collection import trainer_access
from swag_trainer.collection.trainer_access import (
    TrainerLogMetrics,
    asked_by_a_new_state,
    calling_trainer,
    output_folder,
    wait_for_uploads,
)


class SwagTrainer(SwagTrainerMixin, Trainer):
    pass


class Observer(TrainerCallback, ExportableState):
    """Records what the callback of a Trainer can find at its events."""

    def __init__(self):
        self.trainers = []
        self.new_states = []

    def on_step_end(self, args, state, control, **kwargs):
        self.trainers.append(calling_trainer())

    def state(self):
        self.new_states.append(asked_by_a_new_state())
        return {"args": {}, "attributes": {}}


@pytest.fixture(scope="module")
def observed(base_folder, texts, tmp_path_factory):
    """A plain Trainer after two steps and one save, and what a callback of it found."""
    from transformers import BertTokenizerFast

    tokenizer, observer = BertTokenizerFast.from_pretrained(base_folder), Observer()
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    arguments = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = trainer_for(
        lora_model(base_folder), rows, tokenizer, tmp_path_factory.mktemp("run"), callbacks=[observer], **arguments
    )
    trainer.train()
    return trainer, observer


def test_the_trainer_of_an_event_is_found_in_the_frames_of_the_call(observed):
    # Red for: a Trainer without callback_handler or evaluation_loop, or one that stands in another local variable than "self".
    trainer, observer = observed
    assert len(observer.trainers) == 2 and all(found is trainer for found in observer.trainers)
    assert calling_trainer() is None


def test_the_trainer_keeps_its_output_folder_and_trial_under_their_names(observed):
    # Red for: Trainer._get_output_dir or Trainer._trial renamed, which also fails in the hyperparameter search.
    trainer, _ = observed
    assert trainer._trial is None
    assert str(output_folder(trainer, trainer.args)) == trainer.args.output_dir == str(output_folder(None, trainer.args))


def test_a_new_state_of_a_trainer_asks_its_callbacks_and_a_save_does_too(observed):
    # Red for: a TrainerState that takes its callbacks' states elsewhere, so that a new run writes into the folder of the last one.
    _, observer = observed
    assert observer.new_states[0] is True and observer.new_states[-1] is False
    states = len(observer.new_states)
    TrainerState(stateful_callbacks=[observer])
    assert observer.new_states[states:] == [True]


def test_callbacks_are_called_in_the_order_of_one_list(observed):
    # Red for: CallbackHandler.callbacks renamed or sorted; the metrics would come after the reporters.
    trainer, observer = observed
    first = TrainerLogMetrics(dict)
    first.insert_first(trainer)
    assert trainer.callback_handler.callbacks[0] is first and observer in trainer.callback_handler.callbacks
    first.remove(trainer)
    assert isinstance(trainer.callback_handler.callbacks[0], DefaultFlowCallback)


def test_running_pushes_are_waited_for(observed):
    # Red for: Trainer.push_in_progress renamed, and a posterior replaced while the last push still reads it.
    trainer, _ = observed
    waited = []

    class Push:
        def wait_until_done(self):
            waited.append(True)

    trainer.push_in_progress = Push()
    wait_for_uploads(trainer)
    assert waited == [True]
    trainer.push_in_progress = None
    wait_for_uploads(trainer)
    wait_for_uploads(None)


def test_a_trainer_with_the_mixin_hands_itself_over_and_collects_the_same_posterior(
    base_folder, rows, tokenizer, tmp_path, monkeypatch
):
    # Red for: frames inspected all the same, metrics that reporters before the callback do not get or that are there twice.
    plain = SwagCallback(LATE, rank=4)
    arguments = {"logging_steps": 4, "eval_rows": rows[:4], "eval_strategy": "steps", "eval_steps": 12}
    trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path / "plain", callbacks=[plain], **arguments).train()
    monkeypatch.setattr("conftest.Trainer", SwagTrainer)
    monkeypatch.setattr(trainer_access, "calling_trainer", lambda: pytest.fail("the frames were inspected"))
    reporter, swag = Reporter(), SwagCallback(LATE, rank=4)
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path / "mixin", callbacks=[reporter, swag], **arguments)
    trainer.train()
    for part in ("mean", "variance", "deviations"):
        assert torch.equal(getattr(swag.posterior.gaussian, part), getattr(plain.posterior.gaussian, part))
    training = [entry for entry in reporter.logs if "eval_loss" not in entry]
    assert [entry["swag_snapshots"] for entry in training] == [0, 0, 1, 5, 9, 13, 13]
    assert [entry["swag_snapshots"] for entry in trainer.state.log_history if "eval_loss" not in entry] == [
        0,
        0,
        1,
        5,
        9,
        13,
        13,
    ]
    assert not any("swag_snapshots" in entry for entry in reporter.logs if "eval_loss" in entry)
    assert not any(isinstance(callback, TrainerLogMetrics) for callback in trainer.callback_handler.callbacks)


def test_a_callback_that_goes_from_one_trainer_to_another_finds_the_one_that_calls(base_folder, rows, tokenizer, tmp_path):
    # Red for: the attached Trainer of the last run taken for the one that trains now.
    swag = SwagCallback(LATE, rank=4)
    first = SwagTrainer(lora_model(base_folder), args=trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path).args)
    swag.attach(first)
    second = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path / "second", callbacks=[swag])
    second.train()
    assert swag.num_collected == 13
    assert [entry["swag_snapshots"] for entry in second.state.log_history][-1] == 13


def test_a_trainer_that_cannot_be_found_is_warned_about_with_the_features_that_are_missing(
    base_folder, rows, tokenizer, tmp_path, monkeypatch, caplog
):
    # Red for: features that are missing without a word, or a warning where the Trainer was attached.
    monkeypatch.setattr(trainer_access, "_FRAMES", 0)
    with caplog.at_level(logging.WARNING, logger="swag_trainer"):
        hidden = SwagCallback(LATE, rank=4)
        trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path / "hidden", callbacks=[hidden]).train()
    warnings = [record.getMessage() for record in caplog.records if record.name == trainer_access.__name__]
    assert len(warnings) == 1 and "logs get no metrics" in warnings[0] and "SwagTrainerMixin" in warnings[0]
    assert hidden.posterior.num_collected == 13
    caplog.clear()
    attached = SwagCallback(LATE, rank=4)
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path / "attached", callbacks=[attached])
    attached.attach(trainer)
    trainer.train()
    assert not [record for record in caplog.records if record.name == trainer_access.__name__]
