import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import lora_model, trainer_for
from oracles import two_pass_moments
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertTokenizerFast, EarlyStoppingCallback, TrainerCallback

from swag_trainer import Every, SwagCallback, SwagError, SwagPosterior, TooFewCollectionsError
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.records import MOMENTS_FILE
from swag_trainer.collection.schedule import Evenly
from swag_trainer.posterior.folder import POSTERIOR_FILE

LATE = Evenly(snapshots=30, start=0.5)  # in a run of 24 steps: at each of the last 13


class Recorder(TrainerCallback):
    """Writes down the trained weights after every optimizer step, and the learning rate that the Trainer logs."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, *, model, **kwargs):
        trained = [parameter.detach().flatten() for _, parameter in sorted(model.named_parameters()) if parameter.requires_grad]
        self.weights[state.global_step] = torch.cat(trained).clone()


def same(one: SwagPosterior, other: SwagPosterior) -> bool:
    return all(
        torch.equal(getattr(one.gaussian, part), getattr(other.gaussian, part)) for part in ("mean", "variance", "deviations")
    )


def test_the_posterior_is_that_of_the_weights_at_the_steps_that_were_due(base_folder, rows, tokenizer, tmp_path):
    # Red for: collecting before the optimizer's step, at other steps, or again at the end of training.
    swag, recorder = SwagCallback(Every(steps=5, start=0.4), rank=3), Recorder()
    trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[recorder, swag]).train()
    mean, variance, _ = two_pass_moments(torch.stack([recorder.weights[step] for step in (10, 15, 20)]))
    # The recorder's order of weights is another one than the layout's, so the values are compared as sets.
    torch.testing.assert_close(swag.posterior.gaussian.mean.double().sort()[0], mean.sort()[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(swag.posterior.gaussian.variance.double().sort()[0], variance.sort()[0], rtol=1e-5, atol=1e-12)
    assert (swag.posterior.num_collected, swag.posterior.rank) == (3, 3)


def test_without_arguments_it_collects_over_the_last_part_of_any_run_at_a_held_rate(base_folder, rows, tokenizer, tmp_path):
    # Red for: a default that collects at no step of a short run, or a rate that falls while collecting.
    swag = SwagCallback()
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[swag], max_steps=16, logging_steps=1)
    trainer.train()
    facts = swag.posterior.collection
    assert facts.last_step == 16
    assert facts.num_collected == 16 - facts.first_step + 1
    logged = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}
    assert facts.learning_rates == [logged[step] for step in facts.steps]
    assert len(set(facts.learning_rates[1:])) == 1  # held from the first collection on, which was made with the rate before
    assert logged[1] > facts.last_learning_rate > 0


def test_gradient_accumulation_counts_optimizer_steps(base_folder, rows, tokenizer, tmp_path):
    # Red for: counting micro-batches.
    swag = SwagCallback(Every(steps=2, start=0.0))
    trainer_for(
        lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[swag], gradient_accumulation_steps=3, max_steps=8
    ).train()
    assert (swag.num_collected, swag.posterior.collection.first_step) == (4, 2)


def test_epochs_are_those_of_the_optimizer(base_folder, rows, tokenizer, tmp_path):
    # Red for: batches per epoch taken for steps per epoch. 24 rows, batch 4, accumulation 2: 3 steps an epoch.
    swag = SwagCallback(Every(epochs=1, start=0.0))
    trainer_for(
        lora_model(base_folder),
        rows,
        tokenizer,
        tmp_path,
        callbacks=[swag],
        gradient_accumulation_steps=2,
        max_steps=-1,
        num_train_epochs=4,
    ).train()
    assert (swag.num_collected, swag.posterior.collection.first_step, swag.posterior.collection.last_step) == (4, 3, 12)


def test_after_training_the_adapter_holds_the_mean_and_plain_peft_answers_with_it(trained, base_folder, texts, tokenizer):
    # Red for: the last iterate left in the adapter, or in its file.
    trainer, swag = trained
    folder = Path(trainer.args.output_dir)
    for key, mean in swag.posterior.mean.items():
        assert torch.equal(load_file(folder / "adapter_model.safetensors")[key], mean)
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    plain = PeftModel.from_pretrained(base, folder).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(plain(**batch).logits, trainer.model(**batch).logits)


def test_the_trained_weights_stay_when_asked_for_and_the_posterior_belongs_to_them(base_folder, rows, tokenizer, tmp_path):
    # Red for: the mean written all the same, or a digest of the mean recorded beside the last iterate.
    swag, recorder = SwagCallback(final_weights="trained"), Recorder()
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[recorder, swag])
    trainer.train()
    trainer.save_model()
    current = torch.cat([p.detach().flatten() for _, p in sorted(trainer.model.named_parameters()) if p.requires_grad])
    assert torch.equal(current, recorder.weights[24])
    assert same(SwagPosterior.from_pretrained(tmp_path), swag.posterior.stored_as("bfloat16"))


@pytest.mark.parametrize("final_weights", ["mean", "trained", "better"])
def test_the_best_checkpoint_changes_the_adapter_and_never_the_posterior(
    base_folder, rows, tokenizer, tmp_path, final_weights, caplog
):
    # Red for: a collection in on_train_end, which sees the best checkpoint's weights; a mean that replaces better weights unreported,
    # or with numbers of other weights.
    def run(folder, **arguments):
        swag = SwagCallback(final_weights=final_weights, schedule=Every(steps=2, start=0.5))
        trainer = trainer_for(
            lora_model(base_folder),
            rows,
            tokenizer,
            folder,
            callbacks=[swag],
            eval_rows=rows[:6],
            eval_strategy="steps",
            eval_steps=4,
            save_steps=4,
            **arguments,
        )
        trainer.train()
        trainer.save_model()
        return swag, trainer

    arguments = {
        "save_strategy": "steps",
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,
        "eval_on_start": False,
    }
    plain, _ = run(tmp_path / "plain", save_strategy="no")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        best, trainer = run(tmp_path / "best", load_best_model_at_end=True, **arguments)
    assert trainer.state.best_global_step < 24
    assert same(plain.posterior, best.posterior)
    assert same(SwagPosterior.from_pretrained(tmp_path / "best"), best.posterior.stored_as("bfloat16"))
    stored = load_file(tmp_path / "best" / "adapter_model.safetensors")
    is_mean = all(torch.equal(stored[key], mean) for key, mean in best.posterior.mean.items())
    assert is_mean == (final_weights == "mean")
    # The greatest loss was asked for: that of the mean is smaller, and so worse.
    reported = [record.getMessage() for record in caplog.records if "eval_loss is" in record.getMessage()]
    if final_weights == "trained":
        assert reported == []
        return
    AdapterWeights(trainer.model).write(best.posterior.mean)
    mean_loss = trainer.evaluate()["eval_loss"]
    numbers = f"eval_loss is {mean_loss:.4g} at the posterior mean and {trainer.state.best_metric:.4g} at the weights of step "
    assert len(reported) == 1 and reported[0].startswith(f"{numbers}{trainer.state.best_global_step}")
    assert ("keeps the trained weights" in reported[0]) == (final_weights == "better")


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Every(steps=3, start=0.3), marks=pytest.mark.slow),
        pytest.param(Every(epochs=0.5, start=0.3), marks=pytest.mark.slow),
        SwagCallback().schedule,
    ],
)
def test_a_resumed_run_ends_with_the_posterior_of_an_uninterrupted_one(base_folder, rows, tokenizer, tmp_path, schedule):
    # Red for: moments that are lost or counted twice at the resume, or a learning rate that falls again after it.
    def trainer(folder, rank=4):
        swag = SwagCallback(schedule, rank=rank, learning_rate=5e-3)
        return swag, trainer_for(
            lora_model(base_folder),
            rows,
            tokenizer,
            folder,
            callbacks=[swag],
            save_strategy="steps",
            save_steps=2,
            max_steps=24,
        )

    swag, whole = trainer(tmp_path)
    whole.train()
    for file in tmp_path.glob("swag_posterior*"):
        file.unlink()
    for stop in (6, 12, 20):
        part = shutil.copytree(tmp_path / f"checkpoint-{stop}", tmp_path / f"after-{stop}" / f"checkpoint-{stop}").parent
        resumed, second = trainer(part)
        second.train(resume_from_checkpoint=str(part / f"checkpoint-{stop}"))
        assert same(swag.posterior, resumed.posterior)
        assert (swag.posterior.record, swag.posterior.collection) == (resumed.posterior.record, resumed.posterior.collection)


def a_callback(schedule=LATE, **arguments):
    return SwagCallback(schedule, **{"rank": 4} | arguments)


@pytest.fixture(scope="module")
def whole_run(base_folder, texts, tmp_path_factory):
    """The folder of a run with checkpoints at steps 8, 16 and 24."""
    folder, tokenizer = tmp_path_factory.mktemp("whole"), BertTokenizerFast.from_pretrained(base_folder)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    arguments = {"save_strategy": "steps", "save_steps": 8}
    trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=[a_callback()], **arguments).train()
    return folder


@pytest.fixture
def interrupted(whole_run, base_folder, rows, tokenizer, tmp_path):
    """A copy of `whole_run`, and a function that resumes it with other settings."""
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)

    def start(swag, checkpoint=None, folder=tmp_path, **arguments):
        settings = {"save_strategy": "steps", "save_steps": 8} | arguments
        callbacks = [swag] if swag is not None else []
        trainer = trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=callbacks, **settings)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return swag

    return tmp_path, start


def test_a_resume_without_its_moments_is_refused_with_the_place_that_was_looked_at(interrupted):
    # Red for: a silent restart with fewer snapshots.
    folder, start = interrupted
    (folder / "checkpoint-16" / MOMENTS_FILE).unlink()
    with pytest.raises(SwagError, match=r"checkpoint-16.*resume_from"):
        start(a_callback(), folder / "checkpoint-16")


def test_a_resume_with_moments_of_another_run_is_refused(interrupted):
    # Red for: believing the step number. The moments of another step are whole and have the right name.
    folder, start = interrupted
    shutil.copy(folder / "checkpoint-24" / MOMENTS_FILE, folder / "checkpoint-16" / MOMENTS_FILE)
    with pytest.raises(SwagError, match="digest"):
        start(a_callback(), folder / "checkpoint-16")


def test_a_resume_with_a_torn_moments_file_is_refused(interrupted):
    # Red for: reading moments without their digest.
    folder, start = interrupted
    path = folder / "checkpoint-16" / MOMENTS_FILE
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(SwagError, match=r"swag_moments.*changed|truncated|not a readable"):
        start(a_callback(), folder / "checkpoint-16")


@pytest.mark.parametrize(
    ("swag", "arguments", "expected"),
    [
        (a_callback(rank=5), {}, r"rank=4.*rank=5"),
        (a_callback(Every(steps=3, start=0.5)), {}, r"schedule='Evenly.*schedule='Every"),
        (a_callback(), {"max_steps": 32}, r"max_steps=24.*max_steps=32"),
        (a_callback(learning_rate=1e-3), {}, r"learning_rate='hold'.*learning_rate=0\.001"),
    ],
)
def test_a_resume_with_other_settings_is_refused_with_both_values(interrupted, swag, arguments, expected):
    # Red for: a posterior that is that of neither run.
    folder, start = interrupted
    with pytest.raises(SwagError, match=expected):
        start(swag, folder / "checkpoint-16", **arguments)


class Listed:
    """A schedule of the user's own, which prints its address in memory."""

    def __init__(self, *steps):
        self.steps = steps

    def is_due(self, *, step, max_steps, steps_per_epoch=None):
        return step in self.steps


def test_a_run_under_a_schedule_of_ones_own_is_resumed_by_what_the_schedule_does(interrupted):
    # Red for: str(schedule), which holds the address of an object that is gone, compared at the resume; a schedule not compared at all.
    folder, start = interrupted
    shutil.rmtree(folder)
    steps = (10, 12, 14, 18, 20)
    whole = start(a_callback(Listed(*steps)))
    assert whole.posterior.collection.schedule == "Listed"
    assert same(start(a_callback(Listed(*steps)), folder / "checkpoint-16").posterior, whole.posterior)
    with pytest.raises(SwagError, match=r"made with schedule='Listed'"):
        start(a_callback(Listed(10, 12, 14, 18, 22)), folder / "checkpoint-16")


def test_a_checkpoint_of_an_earlier_version_is_resumed_by_how_its_schedule_prints(interrupted):
    # Red for: every older checkpoint refused, because it states neither the collection's steps nor its learning rate.
    folder, start = interrupted
    path = folder / "checkpoint-16" / "trainer_state.json"
    state = json.loads(path.read_text())
    for setting in ("collection_steps", "learning_rate"):
        del state["stateful_callbacks"]["swag_trainer"]["default"][setting]
    path.write_text(json.dumps(state))
    start(a_callback(), folder / "checkpoint-16")
    with pytest.raises(SwagError, match=r"schedule='Evenly.*schedule='Every"):
        start(a_callback(Every(steps=3, start=0.5)), folder / "checkpoint-16")


def test_a_moved_checkpoint_resumes_when_it_is_named(interrupted, tmp_path_factory):
    # Red for: resume_from ignored, or the checkpoint of the same step in output_dir taken instead.
    folder, start = interrupted
    moved = tmp_path_factory.mktemp("elsewhere") / "checkpoint-16"
    shutil.copytree(folder / "checkpoint-16", moved)
    other = tmp_path_factory.mktemp("other-run")
    with pytest.raises(SwagError, match="resume_from"):
        start(a_callback(), moved, folder=other)
    resumed = start(a_callback(resume_from=moved), moved, folder=other)
    assert same(resumed.posterior.stored_as("bfloat16"), SwagPosterior.from_pretrained(folder))


def test_a_callback_that_joins_at_a_resume_works_before_its_first_collection_and_not_after(interrupted, tmp_path_factory):
    # Red for: the Trainer's KeyError at the next save, or a posterior that lacks its first snapshots.
    _, start = interrupted
    plain, fresh = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("fresh")
    start(None, folder=plain)
    shutil.copytree(plain, fresh, dirs_exist_ok=True)
    swag = start(a_callback(Every(steps=4, start=0.5)), plain / "checkpoint-8", folder=plain)
    assert swag.num_collected == 4
    with pytest.raises(SwagError, match=r"step 16 was made without SwagCallback, but 2 collections"):
        start(a_callback(Every(steps=4, start=0.5)), fresh / "checkpoint-16", folder=fresh)


def test_a_trainer_that_restores_its_callbacks_leaves_the_users_object_in_place(interrupted):
    # Red for: the user's object staying empty while another one, with default settings, collects.
    folder, start = interrupted
    whole = SwagPosterior.from_pretrained(folder)
    resumed = start(a_callback(), folder / "checkpoint-16", restore_callback_states_from_checkpoint=True)
    assert same(resumed.posterior.stored_as("bfloat16"), whole)


def test_trainer_state_holds_the_digest_of_the_moments_beside_it(interrupted):
    # Red for: a digest of other moments, or moments written after trainer_state.json.
    from swag_trainer.posterior.storage import read_file

    folder, _ = interrupted
    for step in (8, 16, 24):
        checkpoint = folder / f"checkpoint-{step}"
        record = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["swag_trainer"]["default"]
        if step == 8:
            assert record["digest"] is None and not (checkpoint / MOMENTS_FILE).exists()
        else:
            assert record["digest"] == read_file(checkpoint / MOMENTS_FILE)[2]


def test_early_stopping_before_the_first_collection_keeps_the_model_and_explains_itself(
    base_folder, rows, tokenizer, tmp_path, caplog
):
    # Red for: an exception out of train() that loses the trained model, or an empty posterior file.
    swag = SwagCallback(Every(steps=2, start=0.9))
    trainer = trainer_for(
        lora_model(base_folder),
        rows,
        tokenizer,
        tmp_path,
        callbacks=[swag, EarlyStoppingCallback(1)],
        eval_rows=rows[:4],
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        learning_rate=1e-9,
        metric_for_best_model="eval_loss",
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "This run will take 2 snapshots" in caplog.text
    assert "No SWAG posterior: Training stopped at step" in caplog.text and "first was due at step 22" in caplog.text
    assert not (tmp_path / POSTERIOR_FILE).exists()
    with pytest.raises(TooFewCollectionsError, match="this run made 0"):
        _ = swag.posterior


def test_a_schedule_that_can_never_make_a_posterior_is_refused_before_training(base_folder, rows, tokenizer, tmp_path):
    # Red for: an hour of training before the same error.
    recorder = Recorder()
    trainer = trainer_for(
        lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[SwagCallback(Every(steps=20)), recorder]
    )
    with pytest.raises(TooFewCollectionsError, match=r"Every\(steps=20.*1 of the 24 steps"):
        trainer.train()
    assert not recorder.weights


def test_training_twice_starts_a_new_posterior(base_folder, rows, tokenizer, tmp_path):
    # Red for: moments of the first run mixed into the second.
    swag = SwagCallback(rank=4)
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[swag])
    trainer.train()
    first = swag.posterior
    trainer.train()
    assert swag.posterior.num_collected == first.num_collected
    assert not same(first, swag.posterior)


@pytest.mark.parametrize("resumed", [False, True])
def test_two_callbacks_in_one_trainer_are_refused(interrupted, base_folder, rows, tokenizer, resumed):
    # Red for: the moments of one overwritten by the other's in every checkpoint.
    folder, _ = interrupted
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=[a_callback(), a_callback()])
    with pytest.raises(SwagError, match="two SwagCallbacks"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-16") if resumed else None)


def test_a_run_that_was_interrupted_can_be_started_anew_with_the_same_objects(base_folder, rows, tokenizer, tmp_path):
    # Red for: state(), which the Trainer also calls outside a save, writing into a checkpoint folder that is not there.
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 20 and not self.done:
                self.done = True
                raise KeyboardInterrupt

        done = False

    swag = a_callback()
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[swag, Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert swag.posterior.num_collected == 9  # what there is so far
    trainer.train()
    assert swag.posterior.num_collected == 13
    assert not (tmp_path / "checkpoint-20").exists()


class Reporter(TrainerCallback):
    """Stands before SwagCallback, as TensorBoard's callback does, and keeps what it is given at the time."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, *, logs, **kwargs):
        self.logs.append({"step": state.global_step, **logs})


def test_the_metrics_of_the_collection_reach_reporters_that_stand_before_it(base_folder, rows, tokenizer, tmp_path):
    # Red for: metrics that only our own logger or later callbacks see, or that stay at their first values.
    reporter, swag = Reporter(), SwagCallback(LATE, rank=8)
    trainer = trainer_for(
        lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[reporter, swag], logging_steps=4, eval_rows=rows[:4]
    )
    for _ in range(2):
        reporter.logs.clear()
        trainer.train()
        assert [entry["swag_snapshots"] for entry in reporter.logs] == [0, 0, 1, 5, 9, 13, 13]
        assert "swag_drift" not in reporter.logs[2]
        facts = swag.posterior.collection
        last = reporter.logs[-1]
        assert {name: last[f"swag_{name}"] for name in facts.diagnostics} == facts.diagnostics
        assert (last["swag_deviation_norm"], last["swag_learning_rate"]) == (
            facts.deviation_norms[-1],
            facts.learning_rates[-1],
        )
        assert reporter.logs[3]["swag_effective_rank"] != last["swag_effective_rank"]
        assert trainer.state.log_history[-1].items() >= {k: v for k, v in last.items() if k.startswith("swag")}.items()
    trainer.evaluate()
    assert not any(name.startswith("swag") for name in reporter.logs[-1])
    assert len(trainer.callback_handler.callbacks) == len(set(map(type, trainer.callback_handler.callbacks)))


def test_a_run_that_is_still_on_its_way_is_told_so_once(base_folder, rows, tokenizer, tmp_path, caplog):
    # Red for: a posterior of the descent without a word, or a warning at every log.
    model = lora_model(base_folder, lora_dropout=0.0)
    swag = SwagCallback(Evenly(snapshots=30, start=0.0), rank=20, learning_rate=1e-6)
    trainer = trainer_for(model, rows[:4], tokenizer, tmp_path, callbacks=[swag], learning_rate=1e-6)
    with caplog.at_level(logging.WARNING, logger="swag_trainer"):
        trainer.train()
    assert [record.message for record in caplog.records if "still on its way" in record.message]
    assert swag.posterior.collection.diagnostics["drift"] == pytest.approx(0.75, abs=0.05)


def test_the_saved_checkpoint_also_holds_a_collection_that_was_due_at_its_step(base_folder, rows, tokenizer, tmp_path):
    # Red for: a checkpoint made on SIGTERM, before on_step_end reached this callback, without the snapshot of its step.
    class SaveFirst(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 20:
                trainer._save_checkpoint(trainer.model, trial=None)

    swag = SwagCallback(Every(steps=4, start=0.5), rank=4)
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[SaveFirst(), swag])
    trainer.train()
    resumed = SwagCallback(Every(steps=4, start=0.5), rank=4)
    second = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[resumed])
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert same(swag.posterior, resumed.posterior)


@pytest.mark.parametrize(
    "arguments", [{"rank": 1}, {"rank": -2}, {"learning_rate": 0.0}, {"learning_rate": "constant"}, {"final_weights": "best"}]
)
def test_an_argument_that_means_nothing_is_refused_when_the_callback_is_made(arguments):
    # Red for: an error in the middle of the run.
    with pytest.raises(ValueError, match=r"got"):
        SwagCallback(**arguments)


def test_asking_before_training_says_what_to_do():
    # Red for: an AttributeError on None.
    with pytest.raises(TooFewCollectionsError, match=r"Trainer\(callbacks"):
        _ = SwagCallback().posterior


def test_without_the_callback_the_same_run_ends_elsewhere_only_after_the_first_collection(
    base_folder, rows, tokenizer, tmp_path
):
    # Red for: a callback that draws random numbers or touches weights while the Trainer trains.
    with_swag, without = Recorder(), Recorder()
    swag = SwagCallback(Every(steps=4, start=0.5))
    trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path / "a", callbacks=[with_swag, swag]).train()
    trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path / "b", callbacks=[without]).train()
    assert all(torch.equal(with_swag.weights[step], without.weights[step]) for step in range(1, 13))
