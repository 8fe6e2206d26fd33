import pytest
import torch
from conftest import lora_model, trainer_for
from test_collector import wander
from transformers import TrainerCallback

from swag_trainer import SwagCallback, SwagError, SwagPosterior
from swag_trainer.collection.acceptance import Adaptive, Decision, propose
from swag_trainer.collection.collector import SwagCollector
from swag_trainer.collection.schedule import Every

ACCURACY = Adaptive(metric="eval_accuracy")


@pytest.mark.parametrize(
    ("running", "averaged", "accepted", "expected"),
    [
        (0.5, 0.8, 0.7, Decision.SOFT),
        (0.5, 0.7, 0.7, Decision.SOFT),  # not worse is enough
        (0.5, 0.6, 0.7, Decision.REJECT),
        (0.9, 0.8, 0.7, Decision.HARD),
        (0.8, 0.8, 0.7, Decision.SOFT),  # HARD must beat both, strictly
        (0.7, 0.6, 0.7, Decision.REJECT),
        (0.5, 0.5, None, Decision.SOFT),
        (float("nan"), 0.6, 0.7, Decision.REJECT),
        (0.5, float("nan"), 0.7, Decision.REJECT),
        (float("nan"), float("nan"), None, Decision.REJECT),
    ],
)
def test_a_decision_follows_the_rules_of_the_paper_whichever_way_the_metric_counts(running, averaged, accepted, expected):
    # Red for: >= in the place of >, the two comparisons of HARD joined by "or", a loss that counts upwards.
    assert ACCURACY.decide(running=running, averaged=averaged, accepted=accepted) is expected
    negated = {"running": -running, "averaged": -averaged, "accepted": None if accepted is None else -accepted}
    assert Adaptive().decide(**negated) is expected
    assert Adaptive("eval_cost", greater_is_better=False).decide(**negated) is expected


def test_scripted_scores_drive_the_average_as_computed_by_hand(base_folder):
    # Red for: a rejected candidate that leaves a trace, or HARD weights that do not count as one snapshot afterwards.
    model = lora_model(base_folder)
    collector, generator = SwagCollector(model, rank=5), torch.Generator().manual_seed(0)
    scores = iter([0.6, 0.5, 0.55, 0.7])  # of the averages that are evaluated: all but the first and the one after it
    script = [  # running score, what happens, which candidates are in the average then, its score
        (0.5, Decision.SOFT, [0], 0.5),
        (0.4, Decision.SOFT, [0, 1], 0.6),
        (0.4, Decision.REJECT, [0, 1], 0.6),
        (0.9, Decision.HARD, [3], 0.9),
        (0.8, Decision.REJECT, [3], 0.9),
    ]
    candidates, proposed = [], []
    for step, (running, decision, members, score) in enumerate(script):
        wander(model, generator)
        candidates.append(collector.layout.flatten(collector.weights.read()))
        before = {name: tensor.clone() for name, tensor in collector.moments.tensors().items()}

        def evaluate():
            proposed.append(collector.layout.flatten(collector.weights.read()))
            return next(scores)

        assert propose(collector, ACCURACY, running=running, evaluate=evaluate, step=step, learning_rate=0.1) is decision
        # The model goes on from the running weights, bit for bit.
        assert torch.equal(collector.layout.flatten(collector.weights.read()), candidates[-1])
        by_hand = torch.stack([candidates[member].double() for member in members]).mean(0)
        torch.testing.assert_close(collector.moments.mean.double(), by_hand, rtol=1e-6, atol=1e-8)
        assert (collector.score, collector.snapshots.steps, collector.moments.count) == (score, members, len(members))
        if decision is Decision.REJECT:
            assert all(torch.equal(collector.moments.tensors()[name], tensor) for name, tensor in before.items())
    # What was evaluated is the average with the candidate in it: eq. w' = (c w + theta) / (c + 1).
    expected = [(candidates[0] + candidates[1]) / 2, (candidates[0] + candidates[1] + candidates[2]) / 3]
    torch.testing.assert_close(torch.stack(proposed[:2]), torch.stack(expected), rtol=1e-6, atol=1e-8)


class Scripted(TrainerCallback):
    """Says what each evaluation of a step is worth, in their order: the running weights, then the average. Keeps the weights."""

    SCORES = {
        6: [5],
        8: [4, 6],
        10: [4, 5],
        12: [9, 8],
        14: [7, 9],
        16: [7, 8],
        18: [3, 9.5],
        20: [1, 10],
        22: [1, 2],
        24: [9, 11],
    }
    TAKEN = [12, 14, 18, 20, 24]  # the average begins anew at step 12

    def __init__(self):
        self.weights = {}
        self.left = []

    def on_step_end(self, args, state, control, *, model, **kwargs):
        trained = [parameter.detach().flatten() for _, parameter in sorted(model.named_parameters()) if parameter.requires_grad]
        self.weights[state.global_step] = torch.cat(trained).clone()
        self.left = list(self.SCORES.get(state.global_step, [0]))

    def __call__(self, predictions):
        return {"accuracy": self.left.pop(0) if self.left else 0}


def adaptive_run(
    base_folder, rows, tokenizer, folder, *, acceptance=ACCURACY, resume=None, script=None, eval_rows=None, **arguments
):
    script = script or Scripted()
    swag = SwagCallback(Every(steps=1, start=0.25), rank=4, acceptance=acceptance, final_weights="trained")
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4} | arguments
    trainer = trainer_for(
        lora_model(base_folder), rows, tokenizer, folder, callbacks=[script, swag], eval_rows=eval_rows or rows[:9], **settings
    )
    trainer.compute_metrics = script
    trainer.train(resume_from_checkpoint=resume)
    return swag, trainer


def test_in_a_trainer_the_weights_that_were_accepted_are_collected(base_folder, rows, tokenizer, tmp_path):
    # Red for: candidates of other steps, an evaluation that moves the training, or one that is logged as the running model's.
    with_average, without = Scripted(), Scripted()
    swag, trainer = adaptive_run(base_folder, rows, tokenizer, tmp_path / "a", script=with_average)
    adaptive_run(base_folder, rows, tokenizer, tmp_path / "b", acceptance=None, script=without)
    assert all(torch.equal(with_average.weights[step], without.weights[step]) for step in range(1, 25))
    facts = swag.posterior.collection
    assert (facts.steps, facts.acceptance) == (Scripted.TAKEN, str(ACCURACY))
    by_hand = torch.stack([with_average.weights[step] for step in facts.steps]).double().mean(0)
    torch.testing.assert_close(swag.posterior.gaussian.mean.double().sort()[0], by_hand.sort()[0], rtol=1e-5, atol=1e-7)
    logged = {e["step"]: e["eval_accuracy"] for e in trainer.state.log_history if "eval_accuracy" in e}
    assert logged == {step: Scripted.SCORES.get(step, [0])[0] for step in range(2, 25, 2)}
    assert [e["swag_score"] for e in trainer.state.log_history if "swag_score" in e][-1] == 11


class Always(Adaptive):
    """Accepts whatever comes: plain SWA over the evaluated weights."""

    def decide(self, **scores):
        return Decision.SOFT


def test_the_score_of_an_average_is_what_the_trainer_measures_on_it(base_folder, rows, tokenizer, tmp_path):
    # Red for: the running weights evaluated twice, or an evaluation with dropout.
    swag, trainer = adaptive_run(base_folder, rows, tokenizer, tmp_path, acceptance=Always())
    swag._collector.weights.write(swag._collector.layout.unflatten(swag.posterior.gaussian.mean))
    assert swag.posterior.collection.steps == list(range(6, 25, 2))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(swag._collector.score, rel=1e-6)


@pytest.mark.slow
def test_a_resumed_adaptive_run_ends_like_an_uninterrupted_one(base_folder, rows, tokenizer, tmp_path):
    # Red for: a score that is forgotten, so that the next candidate is taken whatever it is worth.
    whole, _ = adaptive_run(base_folder, rows, tokenizer, tmp_path)
    (tmp_path / "swag_posterior.safetensors").unlink()
    for stop in (4, 8, 16):
        resumed, _ = adaptive_run(base_folder, rows, tokenizer, tmp_path, resume=str(tmp_path / f"checkpoint-{stop}"))
        assert (resumed.posterior.record, resumed.posterior.collection) == (whole.posterior.record, whole.posterior.collection)
        assert torch.equal(resumed.posterior.gaussian.mean, whole.posterior.gaussian.mean)
        assert torch.equal(resumed.posterior.gaussian.deviations, whole.posterior.gaussian.deviations)
        assert SwagPosterior.from_pretrained(tmp_path).num_collected == 5


def test_an_acceptance_that_could_never_decide_is_refused(base_folder, rows, tokenizer, tmp_path):
    # Red for: a run that collects nothing and says so at its end, or a KeyError.
    with pytest.raises(SwagError, match=r"decides at evaluations.*eval_strategy"):
        adaptive_run(base_folder, rows, tokenizer, tmp_path, eval_strategy="no")
    with pytest.raises(SwagError, match=r"eval_f1.*eval_accuracy.*eval_loss"):
        adaptive_run(base_folder, rows, tokenizer, tmp_path, acceptance=Adaptive("eval_f1"))


def test_with_several_evaluation_sets_the_one_that_the_metric_names_decides(base_folder, rows, tokenizer, tmp_path):
    # Red for: the dictionary itself evaluated (KeyError: 0), the average measured on another set, or a set whose name begins alike.
    several = {"dev": rows[:9], "dev_hard": rows[9:21], "test": rows[12:]}
    for metric in ("eval_dev_loss", "eval_dev_hard_loss"):
        swag, trainer = adaptive_run(base_folder, rows, tokenizer, tmp_path, acceptance=Always(metric), eval_rows=several)
        assert swag.posterior.collection.steps == list(range(6, 25, 2))
        swag._collector.weights.write(swag.posterior.mean)
        losses = {name: value for name, value in trainer.evaluate().items() if name.endswith("_loss")}
        assert losses[metric] == pytest.approx(swag._collector.score, rel=1e-6)
        assert len(losses) == 3 and all(
            value != pytest.approx(swag._collector.score, rel=1e-6) for name, value in losses.items() if name != metric
        )


def test_with_several_evaluation_sets_a_metric_of_none_of_them_is_refused_before_the_first_step(
    base_folder, rows, tokenizer, tmp_path
):
    # Red for: a run to the end that collects nothing; a metric that no evaluation of its set has, passed over at every evaluation.
    script, several = Scripted(), {"dev": rows[:9], "test": rows[9:15]}
    for acceptance in (Adaptive(), Adaptive("eval_development_loss")):
        with pytest.raises(SwagError, match=r"metric='eval_dev_loss'\) or 'eval_test_loss'"):
            adaptive_run(base_folder, rows, tokenizer, tmp_path, acceptance=acceptance, script=script, eval_rows=several)
    assert script.weights == {}
    with pytest.raises(SwagError, match=r"eval_dev_f1.*eval_dev_accuracy.*eval_dev_loss"):
        adaptive_run(base_folder, rows, tokenizer, tmp_path, acceptance=Adaptive("eval_dev_f1"), eval_rows=several)


class EvaluateElsewhere(TrainerCallback):
    """Evaluates another data set under another name in the middle of the training."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7:
            self.trainer.evaluate(self.rows, metric_key_prefix="probe")


def test_an_evaluation_under_another_name_proposes_nothing(base_folder, rows, tokenizer, tmp_path):
    # Red for: an error about a metric that this evaluation cannot have, or its score taken for the one that decides.
    probe = EvaluateElsewhere()
    swag = SwagCallback(Every(steps=1, start=0.25), rank=4, acceptance=Always())
    trainer = trainer_for(
        lora_model(base_folder),
        rows,
        tokenizer,
        tmp_path,
        callbacks=[probe, swag],
        eval_rows=rows[:9],
        eval_strategy="steps",
        eval_steps=2,
    )
    probe.trainer, probe.rows = trainer, rows[9:12]
    trainer.train()
    assert swag.posterior.collection.steps == list(range(6, 25, 2))


def test_a_resume_under_another_acceptance_is_refused(base_folder, rows, tokenizer, tmp_path):
    # Red for: an average that began under one rule and goes on under another.
    adaptive_run(base_folder, rows, tokenizer, tmp_path)
    with pytest.raises(SwagError, match=r"acceptance=\"Adaptive.*acceptance=None"):
        adaptive_run(base_folder, rows, tokenizer, tmp_path, acceptance=None, resume=str(tmp_path / "checkpoint-16"))
