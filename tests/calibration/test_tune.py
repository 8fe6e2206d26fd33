import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import WORDS, lora_model, trainer_for
from datasets import Dataset, DatasetInfo, Split
from lively import short_run
from scipy.special import log_softmax
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


def halves(rows, seed=3):
    fitting, calibration = np.array_split(np.random.default_rng(seed).permutation(len(rows)), 2)
    return [rows[index] for index in fitting], [rows[index] for index in calibration]


def nll(model, posterior, rows, **settings):
    predictor = MonteCarloPredictor(model, posterior, progress=False, **({"num_samples": 4, "seed": 3} | settings))
    return log_loss([row["labels"] for row in rows], predictor.predict(rows).probabilities, labels=range(3))


def test_scale_and_temperature_have_the_lowest_penalised_nll_on_the_first_half(finished, held_out):
    # Red for: a choice on all rows or on the other half, one temperature for every scale, the worst in place of the best.
    model, posterior = finished
    tuned = quietly(model, posterior, held_out)
    fitting, _ = halves(held_out)

    def penalised(scale, temperature):
        penalty = np.log(temperature) ** 2 / (2 * 0.5**2 * len(fitting))
        return nll(model, posterior, fitting, scale=scale, temperature=temperature) + penalty

    chosen = penalised(tuned.scale, tuned.temperature)
    for scale, temperature, recorded in ((each.scale, each.temperature, each.nll) for each in tuned.tuning.candidates):
        assert recorded == pytest.approx(nll(model, posterior, fitting, scale=scale, temperature=temperature), abs=1e-5)
        for factor in (0.9, 1.0, 1.1):
            assert chosen <= penalised(scale, temperature * factor) + 1e-6
    assert [each.scale for each in tuned.tuning.candidates] == [0.5, 4.0]
    assert posterior.tuning is None and posterior.scale == 1.0


def test_all_rows_choose_where_none_are_held_back_and_nothing_is_promised(finished, held_out):
    # Red for: half of the rows unused, thresholds whose promise needs rows that nothing was chosen on.
    model, posterior = finished
    tuned = quietly(model, posterior, held_out, calibration_fraction=0)
    record = tuned.tuning
    assert (record.num_examples, record.num_calibration, record.thresholds, record.conformal) == (61, 0, [], [])
    expected = nll(model, posterior, held_out, scale=tuned.scale, temperature=tuned.temperature)
    assert record.nll == pytest.approx(expected, abs=1e-5)
    with pytest.raises(SwagError, match=r"calibration_fraction .* 1\.0"):
        quietly(model, posterior, held_out, calibration_fraction=1.0)


def test_the_record_says_what_predictors_and_a_plain_forward_say_on_the_other_half(finished, held_out, tokenizer):
    # Red for: figures of the rows that the choice was made on, a MAP that is not the last snapshot, SWA at SWAG's temperature.
    model, posterior = finished
    tuned = quietly(model, posterior, held_out)
    fitting, calibration = halves(held_out)
    record = tuned.tuning
    assert (record.num_examples, record.num_calibration, record.num_samples, record.seed) == (31, 30, 4, 3)
    assert (record.dataset, record.split, record.revision) == ("me/texts", "validation", None)
    assert record.nll == pytest.approx(nll(model, tuned, calibration), abs=1e-5)
    assert record.baselines["SWA"] == pytest.approx(nll(model, posterior, calibration, scale=0), abs=1e-5)

    def logits(rows):
        inputs = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
        with torch.no_grad():
            return model(**tokenizer.pad(inputs, return_tensors="pt")).logits.double().numpy()

    def plain_nll(rows, logits, temperature):
        return -log_softmax(logits / temperature, axis=-1)[np.arange(len(rows)), [row["labels"] for row in rows]].mean()

    def best(logits):
        return min(
            np.exp(np.linspace(-3, 3, 601)),
            key=lambda T: plain_nll(fitting, logits, T) + np.log(T) ** 2 / (2 * 0.5**2 * len(fitting)),
        )

    expected = plain_nll(calibration, logits(calibration), best(logits(fitting)))
    assert record.baselines["MAP, temperature"] == pytest.approx(expected, abs=1e-3)
    mean = MonteCarloPredictor(model, posterior, scale=0, progress=False)
    swa = {
        rows: np.log(mean.predict(part).probabilities) for rows, part in (("fitting", fitting), ("calibration", calibration))
    }
    expected = plain_nll(calibration, swa["calibration"], best(swa["fitting"]))
    assert record.baselines["SWA, temperature"] == pytest.approx(expected, abs=1e-3)


def test_thresholds_and_quantiles_bring_the_figures_they_have_on_the_other_half(finished, held_out):
    # Red for: figures of all rows, risk and coverage exchanged, quantiles of another temperature.
    model, posterior = finished
    tuned = quietly(model, posterior, held_out, risks=(0.3, 0.5), confidence=None, coverages=(0.5, 0.9), levels=(0.8, 0.99))
    _, calibration = halves(held_out)
    probabilities = MonteCarloPredictor(model, tuned, num_samples=4, seed=3, progress=False).predict(calibration).probabilities
    labels = np.array([row["labels"] for row in calibration])
    for record in tuned.tuning.thresholds:
        # Other batches move a score by some 1e-7.
        accepted = probabilities.max(axis=1) >= (np.inf if record.threshold is None else record.threshold - 1e-6)
        assert record.coverage == accepted.mean()
        if accepted.any():
            assert record.risk == pytest.approx((probabilities.argmax(axis=1) != labels)[accepted].mean())
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
        if record.level == 0.99:  # 30 rows promise 96.8 % at most
            assert record.quantile is None and record.mean_size == 3
        else:
            options = (record.quantile + 1e-6, record.level, 30, record.penalty, record.regularised_rank)
            sets = ConformalSets(record.method, *options).sets(probabilities)
            assert record.mean_size == pytest.approx(sets.sum(axis=1).mean())
            assert sets[np.arange(30), labels].mean() >= 0.8
    assert {record.method for record in tuned.tuning.conformal} == {"aps", "raps", "lac"}


def test_a_pipeline_from_the_saved_folder_answers_as_it_was_tuned(finished, held_out, tokenizer, tmp_path):
    # Red for: temperature, draws or seed of the record that the pipeline does not take up; a record that is not saved.
    model, posterior = finished
    tuned = quietly(model, posterior, held_out)
    assert abs(tuned.temperature - 1) > 0.05
    tuned.save_pretrained(tmp_path / "tuned", dtype="float32")  # in bfloat16 the draws are rounded
    tokenizer.save_pretrained(tmp_path / "tuned")
    assert SwagPosterior.from_pretrained(tmp_path / "tuned").tuning == tuned.tuning
    classify = pipeline("swag-text-classification", model=str(tmp_path / "tuned"), device="cpu")
    answers = [row["score"] for row in classify([row["text"] for row in held_out])]
    predictor = MonteCarloPredictor(model, posterior, num_samples=4, seed=3, scale=tuned.scale, temperature=tuned.temperature)
    np.testing.assert_allclose(answers, predictor.predict(held_out).probabilities.max(axis=1), atol=1e-6)
    untempered = predictor_scores(model, posterior, held_out, scale=tuned.scale)
    assert np.abs(np.array(answers) - untempered).max() > 1e-3


def predictor_scores(model, posterior, rows, **settings):
    predictor = MonteCarloPredictor(model, posterior, num_samples=4, seed=3, progress=False, **settings)
    return predictor.predict(rows).probabilities.max(axis=1)


def test_it_warns_where_the_draws_make_it_worse_and_only_there(finished, held_out):
    # Red for: no warning; one without the names and the figures; one that always comes.
    model, posterior = finished
    with pytest.warns(
        UserWarning, match=r"30 examples of 'me/texts', SWAG with scale 5000 .* is not better than .*SWA.*\(\d\.\d{4}\)"
    ):
        worse = tune(posterior, model, held_out, **(SETTINGS | {"scales": (5000.0,)}))
    assert worse.tuning.nll > worse.tuning.baselines["SWA, temperature"]
    # Exchange the roles: a posterior whose mean is off by one deviation, along which its draws come back.
    gaussian = posterior.gaussian
    off, *others = gaussian.deviations
    lost = replace(posterior, gaussian=replace(gaussian, mean=gaussian.mean + off, directions=torch.stack([-2 * off, *others])))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned = tune(lost, model, held_out, **(SETTINGS | {"scales": (0.5, 2.0, 8.0)}))
    is_warned = any("is not better than" in str(warning.message) for warning in caught)
    assert tuned.tuning.nll < min(tuned.tuning.baselines.values())
    assert not is_warned


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
    assert set(quietly(trainer.model, diagonal.posterior, held_out).tuning.baselines) == {"SWA", "SWA, temperature"}


def test_a_point_estimate_has_only_a_temperature_to_choose(finished, held_out, tmp_path):
    # Red for: seven equal passes for scales that a point has not, a scale above 0 in its record, a baseline that is itself.
    model, posterior = finished
    point = PointPosterior.at(posterior.mean_vector(), posterior)
    tuned = quietly(model, point, held_out)
    assert isinstance(tuned, PointPosterior) and tuned.scale == 0
    swag = quietly(model, posterior, held_out).tuning
    (candidate,) = tuned.tuning.candidates
    assert (candidate.scale, candidate.temperature) == (0, tuned.temperature)
    assert tuned.tuning.nll == pytest.approx(swag.baselines["SWA, temperature"], abs=1e-9)
    assert tuned.tuning.baselines == pytest.approx({"without temperature": swag.baselines["SWA"]}, abs=1e-9)
    tuned.save_pretrained(tmp_path)
    assert load_posterior(tmp_path).tuning == tuned.tuning


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
