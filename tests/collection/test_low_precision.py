"""The whole way on bases of low precision: trained with the real Trainer, collected, saved, loaded onto a fresh base, answered."""

import pytest
import torch
from conftest import trainer_for
from oracles import two_pass_moments
from peft import PeftModel, get_peft_model_state_dict
from quantised_bases import BITSANDBYTES, QUANTISED, load_base, low_model, write_wide_base
from transformers import TrainerCallback, pipeline

from swag_trainer import Every, MonteCarloPredictor, SwagCallback, SwagPosterior
from swag_trainer.adapters.precision import upcast_to_float32
from swag_trainer.adapters.weights import AdapterWeights

SCHEDULE = Every(steps=3, start=0.5)  # of 24 steps: 12, 15, 18, 21, 24
DUE = (12, 15, 18, 21, 24)


class Trajectory(TrainerCallback):
    """Writes down what the adapter's file would hold after the steps that are due, sorted by its own keys."""

    def __init__(self):
        self.weights, self.dtypes = {}, set()

    def on_step_end(self, args, state, control, *, model, **kwargs):
        if state.global_step not in DUE:
            return
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        self.dtypes |= {tensor.dtype for tensor in tensors.values()}
        self.weights[state.global_step] = torch.cat([tensors[key].detach().flatten().float() for key in sorted(tensors)])


class PredictMeanwhile(TrainerCallback):
    """Asks the provisional posterior for answers in the middle of the run."""

    def __init__(self, swag, rows):
        self.swag, self.rows = swag, rows

    def on_step_end(self, args, state, control, *, model, **kwargs):
        if state.global_step == DUE[2]:
            MonteCarloPredictor(model, self.swag.posterior, num_samples=2, progress=False).predict(self.rows[:4])
            assert model.training


class HoldInFloat32(TrainerCallback):
    """What SwagCallback does at the end of Trainer.__init__ when it is asked to."""

    def on_init_end(self, args, state, control, *, model, **kwargs):
        weights = AdapterWeights(model)
        assert upcast_to_float32(model, dict(zip(weights.layout.keys, weights.parameters(), strict=True))) == []


def run(model, rows, tokenizer, folder, *, held=True, resume=None, **arguments):
    swag, trajectory = SwagCallback(SCHEDULE, rank=4), Trajectory()
    callbacks = [*([HoldInFloat32()] if held else []), swag, trajectory, PredictMeanwhile(swag, rows)]
    trainer = trainer_for(model, rows, tokenizer, folder, callbacks=callbacks, use_cpu=True, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, swag, trajectory


def assert_moments_of(posterior, trajectory):
    mean, variance, deviations = two_pass_moments(torch.stack([trajectory.weights[step] for step in DUE]))
    gaussian = posterior.gaussian
    assert {gaussian.mean.dtype, gaussian.variance.dtype, gaussian.deviations.dtype} == {torch.float32}
    torch.testing.assert_close(gaussian.mean.double(), mean, rtol=1e-6, atol=1e-7)
    # Welford in float32: an error of 1e-7 of the weight, squared, times the number of vectors, below what a variance here is.
    torch.testing.assert_close(gaussian.variance.double(), variance, rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(gaussian.deviations.double(), deviations[-4:], rtol=1e-4, atol=1e-6)


@pytest.fixture
def wide_base(tmp_path, tokenizer):
    return write_wide_base(tmp_path / "wide", tokenizer)


# Not float16 with bf16=True: torch refuses a layer norm of both on the CPU, whoever asks.
@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [
        (torch.bfloat16, {}),
        (torch.bfloat16, {"bf16": True}),
        pytest.param(torch.bfloat16, {"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        pytest.param(torch.float16, {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("held", [False, True])
def test_the_posterior_on_a_low_base_is_that_of_the_trajectory(base_folder, rows, tokenizer, tmp_path, dtype, held, arguments):
    # Red for: statistics in the weights' own precision, or a Trainer that cannot take a step with a float32 head on a low base.
    model = low_model(base_folder, dtype)
    trainer, swag, trajectory = run(model, rows, tokenizer, tmp_path / "run", held=held, **arguments)
    assert trajectory.dtypes == ({torch.float32} if held else {torch.float32, dtype})
    assert_moments_of(swag.posterior, trajectory)
    answers = MonteCarloPredictor(trainer.model, swag.posterior, num_samples=4, scale=10.0, progress=False).predict(rows)
    assert answers.mutual_information.min() > 0


def test_gradient_checkpointing_trains_the_same_held_head(base_folder, rows, tokenizer, tmp_path):
    # Red for: a hook that runs differently when a forward is done twice.
    plain = run(low_model(base_folder, lora_dropout=0.0), rows, tokenizer, tmp_path / "plain")[1].posterior
    checkpointed = run(
        low_model(base_folder, lora_dropout=0.0),
        rows,
        tokenizer,
        tmp_path / "again",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )[1].posterior
    assert torch.equal(plain.gaussian.variance, checkpointed.gaussian.variance)


def test_a_run_with_a_held_head_resumes_bit_for_bit(base_folder, rows, tokenizer, tmp_path):
    # Red for: a checkpoint that holds a rounded head, or one that is loaded back into a bfloat16 one.
    arguments = {"save_strategy": "steps", "save_steps": 6}
    whole = run(low_model(base_folder), rows, tokenizer, tmp_path, **arguments)[1].posterior
    checkpoint = str(tmp_path / "checkpoint-18")
    resumed = run(low_model(base_folder), rows, tokenizer, tmp_path, resume=checkpoint, **arguments)[1].posterior
    for part in ("mean", "variance", "deviations"):
        assert torch.equal(getattr(whole.gaussian, part), getattr(resumed.gaussian, part))


def test_a_held_head_takes_the_small_steps_that_bfloat16_swallows(base_folder, rows, tokenizer, tmp_path):
    # Red for: a head that is cast when training ends, or cast to float32 only in its statistics.
    def share_that_stood_still(held):
        arguments = {"held": held, "learning_rate": 1e-5}
        weights = run(low_model(base_folder), rows, tokenizer, tmp_path / str(held), **arguments)[2].weights
        head = slice(-3 * 32 - 3, None)  # "classifier" comes last in the alphabet
        return float((weights[24] == weights[12])[head].double().mean())

    assert share_that_stood_still(held=False) > 0.5
    assert share_that_stood_still(held=True) < 0.05


@pytest.mark.parametrize(
    ("dtype", "prepared"),
    [
        (torch.bfloat16, False),
        pytest.param(torch.float16, False, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("quantisation", QUANTISED)
def test_a_quantised_base_goes_the_whole_way(wide_base, rows, tokenizer, tmp_path, quantisation, dtype, prepared):
    # Red for: anything on the way that takes a packed weight for a float one, or an answer meanwhile that repacks the user's weights.
    folder = tmp_path / "run"
    trainer, swag, trajectory = run(low_model(wide_base, dtype, quantisation, prepared=prepared), rows, tokenizer, folder)
    assert trajectory.dtypes == {torch.float32}
    assert_moments_of(swag.posterior, trajectory)
    swag.posterior.save_pretrained(folder, dtype="float32")
    posterior = SwagPosterior.from_pretrained(folder)
    fresh = PeftModel.from_pretrained(load_base(wide_base, dtype, quantisation, prepared=prepared), folder)
    here, there = (
        MonteCarloPredictor(model, one, num_samples=4, scale=10.0, progress=False).predict(rows, return_draws=True)
        for model, one in ((trainer.model, swag.posterior), (fresh, posterior))
    )
    assert (here.probabilities == there.probabilities).all()
    assert here.mutual_information.min() > 0


@pytest.mark.parametrize("quantisation", QUANTISED)
def test_the_pipeline_loads_a_quantised_base_when_it_is_told_how(wide_base, rows, texts, tokenizer, tmp_path, quantisation):
    # Red for: a quantisation_config that does not reach the base, or an adapter check that its dtypes fail.
    trainer, swag, _ = run(low_model(wide_base, torch.bfloat16, quantisation), rows, tokenizer, tmp_path / "run")
    classify = pipeline(
        "swag-text-classification",
        model=str(tmp_path / "run"),
        num_samples=4,
        model_kwargs={"quantization_config": quantisation(), "dtype": torch.bfloat16},
    )
    stored = swag.posterior.stored_as("bfloat16")
    expected = MonteCarloPredictor(trainer.model, stored, num_samples=4, progress=False).predict(
        tokenizer(texts[:1], return_tensors="pt")
    )
    answer = classify(texts[:1], top_k=None)[0]
    assert max(row["score"] for row in answer) == pytest.approx(expected.probabilities.max(), abs=1e-6)


@pytest.mark.parametrize("quantisation", BITSANDBYTES)
def test_biases_of_a_quantised_layer_are_collected_as_they_are(wide_base, rows, tokenizer, tmp_path, quantisation):
    # Red for: a key that bitsandbytes' layers spell in another way.
    model = low_model(wide_base, quantisation=quantisation, bias="lora_only")
    _, swag, trajectory = run(model, rows, tokenizer, tmp_path / "run", held=False)
    assert sum("bias" in key for key in swag.posterior.layout.keys) == 5
    assert_moments_of(swag.posterior, trajectory)
