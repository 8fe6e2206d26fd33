"""The posterior under the plain Trainer's features, each with real parts."""

import pytest
import torch
from conftest import lora_model, trainer_for
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import IterableDataset
from trajectories import Witness, assert_posterior_of, same
from transformers import AutoModelForSequenceClassification, EarlyStoppingCallback, Trainer, TrainerCallback

from swag_trainer import Every, SwagCallback, SwagPosterior
from swag_trainer.collection.records import MOMENTS_FILE
from swag_trainer.collection.schedule import Evenly
from swag_trainer.errors import SwagError
from swag_trainer.posterior.folder import POSTERIOR_FILE

EVERY_4 = Every(steps=4, start=0.5)  # in a run of 24 steps: 12, 16, 20, 24
EVALUATED = {"eval_strategy": "steps", "eval_steps": 8}


@pytest.fixture
def run(base_folder, rows, tokenizer, tmp_path):
    """Train a fresh model in ``tmp_path/<folder>`` with a callback and a witness: (trainer, callback, witness)."""

    def start(folder="run", swag=None, *, resume=None, model=None, data=rows, before=(), callbacks=(), **arguments):
        swag = swag or SwagCallback(EVERY_4, rank=3)
        witness = Witness(swag.adapter_name or "default")
        trainer = trainer_for(
            model or lora_model(base_folder),
            data,
            tokenizer,
            tmp_path / folder,
            callbacks=[*before, witness, swag, *callbacks],
            **arguments,
        )
        trainer.train(resume_from_checkpoint=resume and str(resume))
        return trainer, swag, witness

    return start


class Overflow(TrainerCallback):
    """Makes the gradients of one step infinite, as a loss scale that is too large does, and notes which steps were skipped."""

    def __init__(self, step):
        self.step = step
        self.flagged = []

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        if state.global_step == self.step - 1:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("inf"))

    def on_step_end(self, args, state, control, *, optimizer, **kwargs):
        if optimizer.step_was_skipped:
            self.flagged.append(state.global_step)


@pytest.mark.parametrize(("optimizer", "flagged"), [("adamw_torch", [16]), ("adamw_torch_fused", [])])
def test_a_step_that_loss_scaling_skipped_is_not_counted_twice(base_folder, rows, tokenizer, tmp_path, optimizer, flagged):
    # Red for: folding the same weights in again; trusting step_was_skipped, which a fused optimizer, the default, never sets; or
    # moments that forget in a checkpoint what the last weights were.
    # Accelerate makes a scaler for fp16 on accelerators only. torch's own works on the CPU, and is put in its place.
    def start(resume=None):
        swag, witness, overflow = SwagCallback(Every(steps=1, start=0.5), rank=3), Witness(), Overflow(16)
        trainer = trainer_for(
            lora_model(base_folder),
            rows,
            tokenizer,
            tmp_path,
            callbacks=[overflow, witness, swag],
            optim=optimizer,
            max_grad_norm=0.0,
            save_strategy="steps",
            save_steps=15,
        )
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        trainer.train(resume_from_checkpoint=resume and str(resume))
        assert trainer.accelerator.scaler.get_scale() == 2.0**9
        assert overflow.flagged == flagged
        return swag, witness

    swag, witness = start()
    assert_posterior_of(swag.posterior, witness, [12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24])
    resumed, _ = start(tmp_path / "checkpoint-15")
    assert same(resumed.posterior, swag.posterior)


class Forever(IterableDataset):
    """Rows without a length, over and over."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        while True:
            yield from self.rows


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        ({"max_steps": 8}, 8),  # an epoch and a third of 6 steps
        ({"max_steps": -1, "num_train_epochs": 2.5}, 15),
        ({"max_steps": 9, "num_train_epochs": 50}, 9),
        (
            {"max_steps": -1, "num_train_epochs": 3, "gradient_accumulation_steps": 4},
            6,
        ),  # the last step of an epoch is half a step
    ],
)
def test_the_length_of_the_run_is_the_trainers_however_it_is_given(run, arguments, last):
    # Red for: a start or an end that is taken from num_train_epochs while max_steps rules, or the other way round.
    _, swag, witness = run(swag=SwagCallback(Evenly(snapshots=3, start=0.5), rank=2), **arguments)
    first = round(0.5 * last)
    assert max(witness.weights) == last
    assert_posterior_of(swag.posterior, witness, [first, first + (last - first + 1) // 2, last])


def test_data_without_a_length_is_collected_by_steps_and_refused_by_epochs(run, rows):
    # Red for: an epoch's length that is made up.
    trainer, swag, witness = run(swag=SwagCallback(EVERY_4, rank=3), data=Forever(rows))
    assert_posterior_of(swag.posterior, witness, [12, 16, 20, 24])
    with pytest.raises(ValueError, match="does not have"):
        run(swag=SwagCallback(Every(epochs=1)), data=Forever(rows))


def test_early_stopping_after_the_first_collections_leaves_the_posterior_of_what_there_was(run, rows, tmp_path):
    # Red for: a posterior that waits for the last step of the schedule.
    trainer, swag, witness = run(
        swag=SwagCallback(Every(steps=2, start=0.25), rank=2),
        callbacks=[
            EarlyStoppingCallback(3, early_stopping_threshold=10.0)
        ],  # nothing counts as better than the first evaluation
        eval_rows=rows[:4],
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    assert trainer.state.global_step == 12
    assert_posterior_of(swag.posterior, witness, [6, 8, 10, 12])
    assert same(SwagPosterior.from_pretrained(tmp_path / "run"), swag.posterior)


class OutOfMemory(TrainerCallback):
    """Fails as a GPU does whose memory is full, once, at a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.step = None
            raise RuntimeError("CUDA out of memory.")


def test_a_smaller_batch_size_after_running_out_of_memory_starts_the_posterior_anew(run, tmp_path):
    # Red for: snapshots of the attempt that failed, or a schedule of its number of steps.
    arguments = {
        "auto_find_batch_size": True,
        "max_steps": -1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
    }
    swag = SwagCallback(Every(steps=2, start=0.0), rank=3)
    trainer, swag, witness = run(swag=swag, callbacks=[OutOfMemory(6)], **arguments)
    # 24 rows: 3 steps of 8 rows an epoch at first; accelerate then tries 7 rows, which makes 4 steps, or before 1.9 half, which makes 6.
    steps = {7: 8, 4: 12}[trainer.state.train_batch_size]
    assert trainer.state.max_steps == steps
    assert_posterior_of(swag.posterior, witness, range(2, steps + 1, 2))
    logged = [entry["swag_snapshots"] for entry in trainer.state.log_history[:-1]]
    assert logged == [step // 2 for step in range(1, steps + 1)]
    resumed = SwagCallback(Every(steps=2, start=0.0), rank=3)
    run(swag=resumed, resume=tmp_path / "run" / "checkpoint-4", **arguments)
    assert same(resumed.posterior, swag.posterior)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.slow),
        {"gradient_checkpointing": True},  # "activation_checkpointing" from transformers 5.23 on, which takes both until 6
        pytest.param(
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["compiled", "checkpointed", "checkpointed-reentrant"],
)
def test_a_feature_that_only_changes_how_a_step_is_computed_leaves_every_bit_of_the_posterior(run, arguments):
    # Red for: weights read through a wrapper, under its names, or not at all.
    _, plain, _ = run("plain")
    trainer, swag, witness = run("other", **arguments)
    assert_posterior_of(swag.posterior, witness, [12, 16, 20, 24])
    assert same(swag.posterior, plain.posterior)


def two_adapters(base_folder, active):
    """A model with the adapters "default" and "blue", of which one trains."""
    model = lora_model(base_folder)
    model.add_adapter("blue", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    model.set_adapter(active)
    return model


@pytest.mark.parametrize(("active", "folder"), [("default", "."), ("blue", "blue")])
def test_of_several_adapters_the_one_that_trains_is_collected_and_no_save_puts_another_beside_its_posterior(
    run, base_folder, tmp_path, active, folder
):
    # Red for: weights of the idle adapter in the posterior, or the posterior where the Trainer's next save_model() puts another adapter.
    def start(resume=None):
        return run(model=two_adapters(base_folder, active), swag=SwagCallback(EVERY_4, rank=3, adapter_name=active), resume=resume,
                   save_strategy="steps", save_steps=16)  # fmt: skip

    trainer, swag, witness = start()
    assert_posterior_of(swag.posterior, witness, [12, 16, 20, 24])
    output = tmp_path / "run"
    assert same(SwagPosterior.from_pretrained(output / folder), swag.posterior)
    trainer.save_model()
    assert same(SwagPosterior.from_pretrained(output / folder), swag.posterior)
    assert len(list(output.rglob(POSTERIOR_FILE))) == 1
    _, resumed, _ = start(output / "checkpoint-16")
    assert same(resumed.posterior, swag.posterior)


class Forget(TrainerCallback):
    """Leaves the adapter "default" of a resumed run as if the Trainer had not loaded it, as before transformers 5.23."""

    def on_train_begin(self, args, state, control, *, model, **kwargs):
        for name, parameter in model.named_parameters():
            if ".default." in name:
                parameter.data.zero_()


def test_an_adapter_that_the_trainer_does_not_restore_is_restored_from_the_right_checkpoint(
    run, base_folder, tmp_path, monkeypatch
):
    # Red for: training that goes on from the initial weights, or from the adapter of another checkpoint.
    def start(**options):
        return run(model=two_adapters(base_folder, "default"), save_strategy="steps", save_steps=16, **options)

    _, swag, _ = start()
    interrupted = {"before": [Forget()], "resume": tmp_path / "run" / "checkpoint-16"}
    monkeypatch.setattr("swag_trainer.collection.resume.leaves_out_adapter", lambda weights: True)
    with monkeypatch.context() as another:
        another.setattr("swag_trainer.collection.resume.adapters_digest", lambda folder: "0" * 64)
        with pytest.raises(SwagError, match=r'without the adapter "default".*checkpoint-16.*resume_from'):
            start(**interrupted)
    _, resumed, _ = start(**interrupted)
    assert same(resumed.posterior, swag.posterior)


def test_an_only_adapter_with_a_name_of_its_own_lies_where_plain_peft_and_the_hub_look_for_it(run, base_folder, tmp_path):
    # Red for: a posterior in a folder that from_pretrained("user/repository") cannot name.
    model = lora_model(base_folder)
    model.add_adapter("blue", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    model.set_adapter("blue")
    model.delete_adapter("default")
    trainer, swag, witness = run(model=model, swag=SwagCallback(EVERY_4, rank=3, adapter_name="blue"))
    trainer.save_model()
    assert_posterior_of(swag.posterior, witness, [12, 16, 20, 24])
    assert same(SwagPosterior.from_pretrained(tmp_path / "run"), swag.posterior)


def plain_peft(base_folder, folder):
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    return get_peft_model_state_dict(PeftModel.from_pretrained(base, folder), save_embedding_layers=False)


def start_two(run, *, late_first=False, final_weights="mean", resume=None, **arguments):
    swag = SwagCallback(EVERY_4, rank=3)
    late = SwagCallback(Every(steps=2, start=0.7), rank=2, name="late", final_weights=final_weights)
    order = {"before": [late]} if late_first else {"callbacks": [late]}
    trainer, _, witness = run(swag=swag, resume=resume, **order, **arguments)
    return trainer, swag, late, witness


@pytest.mark.parametrize("late_first", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_callbacks_collect_side_by_side_and_both_resume(run, base_folder, tmp_path, late_first):
    # Red for: one's moments, posterior or mean in the place of the other's, in either order.
    arguments = {"late_first": late_first, "save_strategy": "steps", "save_steps": 4}
    trainer, swag, late, witness = start_two(run, **arguments)
    assert_posterior_of(swag.posterior, witness, [12, 16, 20, 24])
    assert_posterior_of(late.posterior, witness, [18, 20, 22, 24])
    output = tmp_path / "run"
    for posterior, folder in [(swag.posterior, output), (late.posterior, output / "late")]:
        assert same(SwagPosterior.from_pretrained(folder), posterior)
        stored = plain_peft(base_folder, folder)
        assert all(torch.equal(stored[key], mean) for key, mean in posterior.mean.items())
    in_model = get_peft_model_state_dict(trainer.model, save_embedding_layers=False)
    assert all(torch.equal(in_model[key], mean) for key, mean in swag.posterior.mean.items())
    # "late" had collected nothing, or two vectors; the Trainer's own way of restoring callbacks makes no difference.
    step = 16 if late_first else 20
    arguments["restore_callback_states_from_checkpoint"] = late_first
    _, resumed, resumed_late, _ = start_two(run, resume=output / f"checkpoint-{step}", **arguments)
    assert same(resumed.posterior, swag.posterior)
    assert same(resumed_late.posterior, late.posterior)


@pytest.mark.parametrize("late_first", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_trained_weights_of_a_second_callback_are_the_last_iterate_whoever_comes_first(run, tmp_path, late_first):
    # Red for: the mean, which the first callback has put into the model by then, called the trained weights.
    _, _, late, witness = start_two(run, late_first=late_first, final_weights="trained")
    stored = load_file(tmp_path / "run" / "late" / "adapter_model.safetensors")
    assert all(torch.equal(stored[key], weight) for key, weight in witness.weights[24].items())
    assert same(SwagPosterior.from_pretrained(tmp_path / "run" / "late"), late.posterior)


class Trials(TrainerCallback):
    """Keeps what each trial of a hyperparameter search ended with."""

    def __init__(self, swag, witness):
        self.swag, self.witness, self.ended = swag, witness, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.witness.weights = {}

    def on_train_end(self, args, state, control, **kwargs):
        seen = Witness()
        seen.weights = self.witness.weights
        self.ended.append((self.swag.posterior, seen))


@pytest.mark.parametrize(
    "save_steps", [pytest.param(None, marks=pytest.mark.slow), 8], ids=["without-checkpoints", "with-checkpoints"]
)
def test_every_trial_of_a_hyperparameter_search_keeps_its_own_posterior(base_folder, rows, tokenizer, tmp_path, save_steps):
    # Red for: one trial's posterior in another's folder, or all of them in one; moments in no checkpoint, or in another trial's; a
    # trial that begins with the snapshots of one that was pruned.
    optuna = pytest.importorskip("optuna", reason="the Trainer's hyperparameter search needs optuna")

    class PruneTheSecond(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1 and trial.last_step >= 16

    saving = {"save_strategy": "no"} if save_steps is None else {"save_strategy": "steps", "save_steps": save_steps}
    swag, witness = SwagCallback(Every(steps=2, start=0.5), rank=2), Witness()
    trials = Trials(swag, witness)
    template = trainer_for(
        lora_model(base_folder), rows, tokenizer, tmp_path, eval_rows=rows[:4], max_steps=20, **saving, **EVALUATED
    )
    trainer = Trainer(
        model_init=lambda trial: lora_model(base_folder),
        args=template.args,
        train_dataset=rows,
        eval_dataset=rows[:4],
        processing_class=tokenizer,
        callbacks=[witness, swag, trials],
    )
    rates = [1e-2, 2e-2, 3e-2]
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        n_trials=3,
        backend="optuna",
        direction="minimize",
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}, seed=0),
        pruner=PruneTheSecond(),
    )
    assert len(trials.ended) == 3
    for number, (posterior, seen) in enumerate(trials.ended):
        pruned = number == 1
        assert_posterior_of(posterior, seen, range(10, 17 if pruned else 21, 2))
        assert same(SwagPosterior.from_pretrained(tmp_path / f"run-{number}"), posterior)
        moments = [int(path.parent.name.split("-")[1]) for path in (tmp_path / f"run-{number}").rglob(MOMENTS_FILE)]
        saved = [step for step in (8, 12, 16, 20) if save_steps and (step % save_steps == 0 or step == 20) and step >= 10]
        assert sorted(moments) == [step for step in saved if not (pruned and step >= 16)]
    assert not (tmp_path / POSTERIOR_FILE).exists()
    # The run with the best setting, after the search, is a run like any other.
    trainer.train()
    assert same(SwagPosterior.from_pretrained(tmp_path), swag.posterior)
    assert same(SwagPosterior.from_pretrained(tmp_path / "run-0"), trials.ended[0][0])
