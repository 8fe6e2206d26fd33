import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import WORDS, lora_model, trainer_for
from datasets import Dataset, DatasetInfo, Split
from lively import short_run
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss
from transformers import BertTokenizerFast, pipeline

from swag_trainer import MonteCarloPredictor, SwagCallback, SwagError, SwagPosterior
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.calibration.held_out import HeldOut
from swag_trainer.calibration.tune import tune
from swag_trainer.metrics.conformal import ConformalSets
from swag_trainer.posterior import load_posterior
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.prediction.sampler import Sampling
from swag_trainer.tasks import task_named

SAMPLING = Sampling(num_samples=4, seed=3)
SETTINGS = {"name": "me/texts", "split": "validation", "sampling": SAMPLING, "scales": (0.5, 4.0), "progress": False}


@pytest.fixture(scope="module")
def finished(base_folder, texts, tmp_path_factory):
    """A model that holds the last snapshot of a posterior, and the posterior. No test may change them."""
    _, posterior, _ = short_run(base_folder, texts, tmp_path_factory.mktemp("run"))
    model = lora_model(base_folder).eval()
    AdapterWeights(model).write(posterior.layout.unflatten(posterior.gaussian.mean + posterior.gaussian.deviations[-1]))
    return model, posterior


@pytest.fixture(scope="module")
def held_out(finished, base_folder):
    """Sixty-one texts, whose labels are drawn from what the posterior's mean says of them at temperature 2."""
    tokenizer = BertTokenizerFast.from_pretrained(base_folder)
    generator = torch.Generator().manual_seed(9)
    lengths = torch.randint(2, 13, (61,), generator=generator).tolist()
    texts = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator)) for length in lengths]
    rows = [{**tokenizer(text), "text": text} for text in texts]
    says = MonteCarloPredictor(*finished, scale=0, temperature=2.0, progress=False).predict(rows).probabilities
    labels = torch.multinomial(torch.from_numpy(says), 1, generator=generator).flatten().tolist()
    return [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def quietly(model, posterior, rows, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tune(posterior, model, rows, **(SETTINGS | settings))


def nll(model, posterior, rows, **settings):
    predictor = MonteCarloPredictor(model, posterior, progress=False, **({"num_samples": 4, "seed": 3} | settings))
    return log_loss([row["labels"] for row in rows], predictor.predict(rows).probabilities, labels=range(3))


@pytest.fixture(scope="module")
def tuned(finished, held_out):
    """Tuned on the sixty-one texts at two scales. No test may change it."""
    return quietly(*finished, held_out, risks=(0.3, 0.5), confidence=None, coverages=(0.5, 0.9), levels=(0.8, 0.99))


@pytest.fixture(scope="module")
def logits(finished, held_out):
    """Logarithms of each draw's probabilities by (centre, scale, dropout), (S, 61, 3), asked of predictors one by one."""
    ways = [(center, 0.0, False) for center in ("mean", "tail", "last")]
    ways += [(center, scale, False) for scale in (0.5, 4.0) for center in ("mean", "last")]
    ways += [(center, scale, True) for scale in (0.5, 4.0) for center in ("mean", "last")]
    found = {}
    for center, scale, dropout in ways:
        settings = {"center": center, "scale": scale, "dropout": dropout, "temperature": 1.0, "num_samples": 4, "seed": 3}
        predicted = MonteCarloPredictor(*finished, progress=False, **settings).predict(held_out, return_draws=True)
        found[center, scale, dropout] = np.log(predicted.draw_probabilities)
    return found


@pytest.fixture(scope="module")
def labels(held_out):
    return np.array([row["labels"] for row in held_out])


def averaged(logits, temperature):
    return softmax(logits / temperature, axis=-1).mean(axis=0)


def fitted(logits, labels, *, prior_std):
    """The best temperature of a fine grid, and its penalised NLL in total."""

    def loss(T):
        likelihood = averaged(logits, T)[np.arange(len(labels)), labels]
        return np.log(T) ** 2 / (2 * prior_std**2) - np.log(likelihood).sum()

    best = min(np.exp(np.linspace(-2, 2, 1601)), key=loss)
    return best, loss(best)


def prior(center, scale, dropout):
    return (np.log(scale) ** 2 / (2 * np.log(4) ** 2) if scale else 0) + 2 * dropout + 2 * (center != "mean" or scale == 0)


def slowly_cross_fitted(logits, labels):
    """Probabilities of each fold, by what the four others choose. Shape (61, 3)."""
    found = np.empty((61, 3))
    for fold in np.array_split(np.random.default_rng(3).permutation(61), 5):
        others = np.setdiff1d(np.arange(61), fold)
        results = {way: fitted(each[:, others], labels[others], prior_std=0.2) for way, each in logits.items()}
        way = min(results, key=lambda way: results[way][1] + prior(*way))
        found[fold] = averaged(logits[way][:, fold], results[way][0])
    return found


def test_all_examples_choose_the_candidate_of_the_lowest_penalised_nll(finished, tuned, logits, labels):
    # Red for: a candidate left out, part of the examples unused, one temperature for all, the worst in place of the best, no priors.
    record = tuned.tuning
    assert [(each.center, each.scale, each.dropout) for each in record.candidates] == list(logits)
    losses = {}
    for each in record.candidates:
        way = (each.center, each.scale, each.dropout)
        temperature, total = fitted(logits[way], labels, prior_std=0.2)
        losses[way] = total + prior(*way)
        assert each.temperature == pytest.approx(temperature, rel=0.004)
        assert each.nll == pytest.approx(log_loss(labels, averaged(logits[way], each.temperature), labels=range(3)), abs=1e-5)
    assert (record.center, tuned.scale, record.dropout) == min(losses, key=losses.get)
    assert record.temperature == next(
        each.temperature for each in record.candidates if (each.center, each.scale, each.dropout) == min(losses, key=losses.get)
    )
    assert (record.num_examples, record.num_calibration, record.num_folds) == (61, 61, 5)
    assert (record.num_samples, record.seed, record.design) == (4, 3, "matched")
    assert (record.dataset, record.split, record.revision) == ("me/texts", "validation", None)
    assert record.relative_energy == tuned.relative_energy()
    posterior = finished[1]
    assert posterior.tuning is None and posterior.scale == 1.0


def test_the_recorded_metrics_are_cross_fitted(tuned, logits, labels, finished, held_out):
    # Red for: metrics on examples that chose, a MAP that is not the last snapshot, a baseline with another prior than the candidates.
    record = tuned.tuning

    def metric(ways):
        return log_loss(labels, slowly_cross_fitted(ways, labels), labels=range(3))

    assert record.nll == pytest.approx(metric(logits), abs=2e-3)
    for name, center in (("SWA, temperature", "mean"), ("MAP, temperature", "last")):
        way = (center, 0.0, False)
        assert record.baselines[name] == pytest.approx(metric({way: logits[way]}), abs=2e-3)
    assert record.baselines["SWA"] == pytest.approx(nll(*finished, held_out, scale=0), abs=1e-5)
    assert set(record.baselines) == {"SWA", "SWA, temperature", "MAP, temperature"}


def test_sets_that_hold_every_label_are_reported(finished, held_out):
    # Red for: a promise of 99 % by 61 examples, which is kept by naming every label, without a word.
    settings = {"sampling": Sampling(2), "scales": [1.0], "progress": False}
    with pytest.warns(UserWarning) as warned:
        tune(finished[1], finished[0], held_out, levels=(0.5, 0.99), **settings)
    texts = [str(each.message) for each in warned if "Prediction sets" in str(each.message)]
    assert len(texts) == 1 and texts[0].startswith("Prediction sets for 0.99 hold all 3 labels of every example of 'unnamed'")


def test_map_is_a_plain_forward_of_the_last_snapshot(finished, logits, held_out, tokenizer):
    # Red for: the centre of another snapshot.
    inputs = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in held_out]
    with torch.no_grad():
        plain = finished[0](**tokenizer.pad(inputs, return_tensors="pt")).logits.double().numpy()
    np.testing.assert_allclose(logits["last", 0.0, False][0], log_softmax(plain, axis=-1), atol=1e-4)


def test_thresholds_and_quantiles_bring_the_metrics_they_have_on_the_cross_fitted_predictions(tuned, logits, labels):
    # Red for: predictions of examples that chose, risk and coverage exchanged, quantiles of another temperature.
    probabilities = slowly_cross_fitted(logits, labels)
    for record in tuned.tuning.thresholds:
        # The temperatures of the slow loop are off by up to 0.3 %.
        scores, threshold = probabilities.max(axis=1), np.inf if record.threshold is None else record.threshold
        surely, perhaps = scores >= threshold + 2e-3, scores >= threshold - 2e-3
        assert surely.mean() <= record.coverage <= perhaps.mean()
        if record.coverage:
            wrong = probabilities.argmax(axis=1) != labels
            assert wrong[surely].sum() <= round(record.risk * record.coverage * 61) <= wrong[perhaps].sum()
        assert record.level is None
        if record.goal == "coverage":
            assert record.coverage >= record.target
        elif record.threshold is not None:
            assert record.risk <= record.target
    assert [(record.goal, record.target) for record in tuned.tuning.thresholds] == [
        ("risk", 0.3),
        ("risk", 0.5),
        ("coverage", 0.5),
        ("coverage", 0.9),
    ]
    for record in tuned.tuning.conformal:
        if record.level == 0.99:  # 61 examples promise 98.4 % at most
            assert record.quantile is None and record.mean_size == 3
        else:
            options = (record.quantile + 2e-3, record.level, 61, record.penalty, record.regularised_rank)
            sets = ConformalSets(record.method, *options).sets(probabilities)
            assert record.mean_size <= sets.sum(axis=1).mean() <= record.mean_size + 0.2
            assert sets[np.arange(61), labels].mean() >= 0.8
    assert {record.method for record in tuned.tuning.conformal} == {"aps", "raps", "lac"}


def test_the_default_candidates_are_seven_and_a_model_without_dropout_has_five(finished, held_out, base_folder):
    # Red for: scales of a grid that a hundred examples cannot tell apart, a model without dropout refused or with a warning about it.
    model, posterior = finished
    expected = [("mean", 0, False), ("tail", 0, False), ("last", 0, False), ("mean", 1, False), ("last", 1, False)]
    settings = {name: value for name, value in SETTINGS.items() if name != "scales"}
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for each, dropped in ((model, [("mean", 1, True), ("last", 1, True)]), (plain, [])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "On .* examples")
            found = tune(posterior, each, held_out, **settings).tuning.candidates
        assert [(one.center, one.scale, one.dropout) for one in found] == expected + dropped


def test_draws_that_lead_back_from_a_bad_mean_are_chosen_and_a_scale_at_an_end_of_the_grid_is_warned_about(finished, held_out):
    # Red for: no noise whatever the draws are worth, a grid that cuts the best scale off without a warning.
    model, posterior = finished
    gaussian = posterior.gaussian
    off, *others = gaussian.deviations
    # The mean is off by one deviation, along which the draws come back.
    lost = replace(posterior, gaussian=replace(gaussian, mean=gaussian.mean + off, directions=torch.stack([-2 * off, *others])))
    with pytest.warns(UserWarning, match=r"scale \S+, a relative energy of \S+, is at an end of scales=\[2.0, 8.0\]"):
        tuned = tune(lost, model, held_out, **(SETTINGS | {"scales": [2.0, 8.0]}))
    assert tuned.scale in (2.0, 8.0)


def test_a_pipeline_from_the_saved_folder_predicts_as_it_was_tuned(finished, held_out, tuned, tokenizer, tmp_path):
    # Red for: temperature, centre, draws, design or seed of the record that the pipeline does not take up; a record that is not saved.
    model, posterior = finished
    record = replace(tuned.tuning, temperature=1.5, center="last", dropout=False, design="iid")
    posterior.with_tuning(record, scale=4.0).save_pretrained(tmp_path, dtype="float32")  # in bfloat16 the draws are rounded
    tokenizer.save_pretrained(tmp_path)
    assert SwagPosterior.from_pretrained(tmp_path).tuning == record
    classify = pipeline("swag-text-classification", model=str(tmp_path), device="cpu")
    scores = [row["score"] for row in classify([row["text"] for row in held_out])]
    asked = {"num_samples": 4, "seed": 3, "scale": 4.0, "temperature": 1.5, "center": "last", "design": "iid"}

    def predicted(**changes):
        return (
            MonteCarloPredictor(model, posterior, progress=False, **(asked | changes))
            .predict(held_out)
            .probabilities.max(axis=1)
        )

    np.testing.assert_allclose(scores, predicted(), atol=1e-6)
    for changes in ({"temperature": 1.0}, {"center": "mean"}, {"design": "matched"}, {"seed": 4}):
        assert np.abs(scores - predicted(**changes)).max() > 1e-3, changes


def test_it_warns_where_tuning_makes_nothing_better_and_only_there(finished, held_out):
    # Red for: no warning; one without the names and the metrics; one that always comes, or about a point of more compute.
    model, posterior = finished
    point = PointPosterior.at(posterior.mean_vector(), posterior)
    predicted = MonteCarloPredictor(model, point, progress=False).predict(held_out).probabilities
    seen = set()
    for seed in range(4):
        generator = np.random.default_rng(seed)
        right = [{**row, "labels": int(generator.choice(3, p=p))} for row, p in zip(held_out, predicted, strict=True)]
        for rows in (right, held_out):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                tuning = tune(point, model, rows, **SETTINGS).tuning
            messages = [str(warning.message) for warning in caught if "is not better than" in str(warning.message)]
            is_worse = tuning.nll >= tuning.baselines["without temperature"]
            assert bool(messages) == is_worse
            if messages:
                assert (
                    f"61 examples of 'me/texts', point around the mean with scale 0 and temperature {tuning.temperature:.2f}"
                    in messages[0]
                )
                assert f"without temperature ({tuning.baselines['without temperature']:.4f})" in messages[0]
                assert f"is {tuning.nll:.4f}, cross-fitted." in messages[0] and "compute" not in messages[0]
            seen.add(is_worse)
    assert seen == {True, False}


@pytest.fixture(scope="module")
def two_ranks(base_folder, texts, tmp_path_factory):
    """(trainer, callback with deviations, callback without) of one run that kept the weights it ended with."""
    tokenizer = BertTokenizerFast.from_pretrained(base_folder)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    swag, diagonal = SwagCallback(rank=5, final_weights="trained"), SwagCallback(rank=0, name="diagonal")
    folder = tmp_path_factory.mktemp("two-ranks")
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=[swag, diagonal])
    trainer.train()
    trainer.model.eval()
    return trainer, swag, diagonal


def test_the_last_snapshot_is_what_the_run_ended_with(two_ranks):
    # Red for: the first deviation, or one that is taken off the mean.
    trainer, swag, _ = two_ranks
    assert swag.posterior.collection.steps[-1] == trainer.state.global_step
    for key, weight in swag.posterior.layout.unflatten(swag.posterior.last_snapshot()).items():
        torch.testing.assert_close(weight, swag.posterior.adapter.tensors[key], rtol=1e-5, atol=1e-6)


def test_a_posterior_without_deviations_has_no_last_snapshot_to_compare_with(two_ranks, held_out):
    # Red for: deviations[-1] of an empty tensor.
    trainer, _, diagonal = two_ranks
    tuning = quietly(trainer.model, diagonal.posterior, held_out).tuning
    assert set(tuning.baselines) == {"SWA", "SWA, temperature"} and {each.center for each in tuning.candidates} == {"mean"}


def test_a_point_estimate_has_only_a_temperature_to_choose(finished, held_out, tuned, tmp_path):
    # Red for: equal passes for scales that a point does not have, a scale above 0 in its record, a baseline that is itself.
    model, posterior = finished
    point = PointPosterior.at(posterior.mean_vector(), posterior)
    found = quietly(model, point, held_out)
    assert isinstance(found, PointPosterior) and found.scale == 0
    (candidate,) = found.tuning.candidates
    mean = tuned.tuning.candidates[0]
    assert (
        (candidate.center, candidate.scale, candidate.dropout) == (mean.center, mean.scale, mean.dropout) == ("mean", 0, False)
    )
    assert (candidate.temperature, candidate.nll) == pytest.approx((mean.temperature, mean.nll), abs=1e-9)
    assert found.tuning.baselines == pytest.approx({"without temperature": tuned.tuning.baselines["SWA"]}, abs=1e-9)
    assert found.tuning.relative_energy is None
    found.save_pretrained(tmp_path)
    assert load_posterior(tmp_path).tuning == found.tuning


def test_what_is_chosen_is_not_given_to_what_looks_for_it(finished, held_out):
    # Red for: a scale of the caller's that is silently ignored.
    for sampling in (Sampling(scale=1.0), Sampling(temperature=2.0), Sampling(center="mean"), Sampling(dropout=False)):
        with pytest.raises(SwagError, match="leave it out of sampling"):
            quietly(*finished, held_out, sampling=sampling)


def origin(dataset, **given):
    """Name, split and revision that a data set is recorded with."""
    found = HeldOut.of(dataset, task=task_named(None), num_labels=3, **given)
    return found.name, found.split, found.revision


def test_a_data_set_from_the_hub_has_its_name_split_and_commit(finished, held_out):
    # Red for: the name of a file format taken for the data's; a commit of other data; a record without a name refused or left empty.
    bare = Dataset.from_list(held_out)
    commit = "0123456789abcdef0123456789abcdef01234567"
    info = DatasetInfo(dataset_name="texts", download_checksums={f"hf://datasets/me/texts@{commit}/dev.jsonl": {}})
    loaded = Dataset(bare.data, info=info, split=Split.VALIDATION)
    assert origin(loaded) == ("me/texts", "validation", commit)
    assert origin(loaded, name="others") == ("others", "validation", None)
    assert origin(loaded, split="test", revision="main") == ("me/texts", "test", "main")
    for unnamed in (held_out, bare, Dataset(bare.data, info=DatasetInfo(dataset_name="json"))):
        assert origin(unnamed) == ("unnamed", None, None)
    tuning = quietly(*finished, loaded, name=None, split=None).tuning
    assert (tuning.dataset, tuning.split, tuning.revision) == ("me/texts", "validation", commit)
    assert quietly(*finished, held_out, name=None).tuning.dataset == "unnamed"


@pytest.mark.parametrize("path", ["/home/me/data", "~/data", "./data", "..", "C:\\data", "C:/data", "data/me/dev.csv"])
def test_a_path_of_this_machine_is_no_name(finished, held_out, path):
    # Red for: a home folder published in a posterior's file.
    model, posterior = finished
    with pytest.raises(SwagError, match="not a path"):
        quietly(model, posterior, held_out, name=path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:19], "at least 20"),
        (lambda rows: [], "without rows"),
        (lambda rows: [{"input_ids": row["input_ids"]} for row in rows], "no column 'labels'"),
        (lambda rows: [{**row, "labels": 0.5} for row in rows], "class number"),
        (lambda rows: [{**row, "labels": [0, 1, 1]} for row in rows], "class number"),
        (lambda rows: [*rows, {**rows[0], "labels": -100}], "Row 61 has labels=-100"),
        (lambda rows: [*rows, {**rows[0], "labels": 3}], "classes 0 to 2"),
        (lambda rows: [*rows, {"input_ids": [2, 3]}], "Row 61"),
    ],
)
def test_rows_that_cannot_be_tuned_on_are_refused_and_named(finished, held_out, change, said):
    # Red for: -100 counted from the end, a share of a class cut to 0, a choice by chance.
    model, posterior = finished
    with pytest.raises(SwagError, match=said):
        quietly(model, posterior, change(held_out))


@pytest.mark.parametrize(
    "settings",
    [{"scales": ()}, {"scales": (0.0, 1.0)}, {"scales": (-1.0,)}, {"risks": (5,)}, {"levels": (90,)}, {"coverages": (1.0,)}]
    + [{"confidence": 1.0}],
)
def test_a_number_out_of_range_is_refused_by_name_before_anything_is_computed(finished, held_out, settings):
    # Red for: levels in per cent; an error after minutes of passes.
    model, posterior = finished
    with pytest.raises(SwagError, match=next(iter(settings))):
        quietly(model, posterior, held_out, **settings)


@pytest.mark.parametrize(("problem", "said"), [("regression", "regression"), ("multi_label_classification", "do not exclude")])
def test_what_has_no_softmax_is_refused(finished, held_out, problem, said, monkeypatch):
    # Red for: a temperature for a number.
    model, posterior = finished
    monkeypatch.setattr(model.get_base_model().config, "problem_type", problem)
    with pytest.raises(SwagError, match=said):
        quietly(model, posterior, held_out)
