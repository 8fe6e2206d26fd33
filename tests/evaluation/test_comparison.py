import json

import numpy as np
import pytest
from scipy.stats import norm

from swag_trainer.errors import SwagError
from swag_trainer.evaluation.comparison import Comparison, compare, compare_ood_detection, verdict
from swag_trainer.evaluation.measurement import Measurement, measure
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics import Interval, auroc, negative_log_likelihood


def predictions(probabilities_of_truth, labels):
    """Predictions for two classes that give the true class a probability."""
    p = np.empty((len(labels), 2))
    p[np.arange(len(labels)), labels] = probabilities_of_truth
    p[np.arange(len(labels)), 1 - labels] = 1 - probabilities_of_truth
    return MethodPredictions(p)


@pytest.fixture
def three():
    """SWAG, a rival that is worse by 0.05 nats on each example give or take 0.1, and one that cannot be told apart."""
    generator = np.random.default_rng(0)
    labels, own = generator.integers(2, size=400), generator.uniform(0.3, 0.8, size=400)
    worse = own * np.exp(-0.05 + generator.uniform(-0.17, 0.17, size=400))
    alike = own * np.exp(generator.uniform(-0.17, 0.17, size=400))
    return {name: predictions(p, labels) for name, p in {"SWAG": own, "MAP": worse, "MAP, temperature": alike}.items()}, labels


def test_a_paired_difference_is_the_difference_of_the_nlls_with_the_error_of_its_mean(three):
    # Red for: a sign that is turned round, resamples of the two methods apart (five times as wide here), another level.
    methods, labels = three
    by_name = {each.other: each for each in compare(methods, labels, method="SWAG", level=0.9)}
    for name, each in by_name.items():
        nlls = [negative_log_likelihood(methods[one].probabilities, labels) for one in (name, "SWAG")]
        assert each.difference.value == pytest.approx(nlls[0] - nlls[1], abs=1e-12)
        truth = [methods[one].probabilities[np.arange(400), labels] for one in ("SWAG", name)]
        error = np.log(truth[0] / truth[1]).std() / 20
        half = norm.ppf(0.95) * error
        np.testing.assert_allclose(
            [each.difference.low, each.difference.high], each.difference.value + np.array([-half, half]), atol=half / 8
        )
    assert by_name["MAP"].is_better and not by_name["MAP"].is_worse
    assert not by_name["MAP, temperature"].is_better and not by_name["MAP, temperature"].is_worse


def test_the_verdict_is_about_the_strongest_rival(three):
    # Red for: the weakest rival, a win over MAP reported while MAP with a temperature is as good; SWA, which is part of the posterior.
    methods, labels = three
    comparisons = compare({**methods, "SWA": methods["SWAG"]}, labels, method="SWAG")
    assert [each.other for each in comparisons][-1] == "MAP"
    assert verdict(comparisons).startswith(
        "SWAG and MAP + temperature cannot be told apart on 400 examples: the NLL of SWAG is "
    )
    assert verdict([each for each in comparisons if each.other != "MAP, temperature"]).startswith(
        "SWAG is better than MAP by 0.0"
    )
    assert verdict([each for each in comparisons if each.other == "SWA"]) is None


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        ((0.021, 0.002, 0.04), "SWAG is better than MAP + temperature by 0.021 nats [0.002, 0.040] on 148 examples."),
        ((-0.021, -0.04, -0.002), "SWAG is worse than MAP + temperature by 0.021 nats [0.002, 0.040] on 148 examples."),
        (
            (-0.01, -0.04, 0.02),
            "SWAG and MAP + temperature cannot be told apart on 148 examples: the NLL of SWAG is higher by 0.010 nats [-0.020, 0.040].",
        ),
    ],
)
def test_each_outcome_has_its_sentence(difference, sentence):
    # Red for: a loss that reads like a win, limits in the wrong order.
    assert str(Comparison("SWAG", "MAP, temperature", Interval(*difference), 148)) == sentence


def test_ood_detection_is_compared_with_map_by_the_paired_difference_of_the_auroc():
    # Red for: a difference of the wrong sign, methods resampled apart, a loss that is left unsaid, OOD examples without their number.
    generator = np.random.default_rng(0)
    inside, outside = generator.uniform(0.55, 0.95, size=(2, 150))
    outside -= 0.1
    better = np.clip(outside - 0.1 + generator.normal(scale=0.01, size=150), 0.5, 1)

    def with_ood(ood):
        stacked = [np.stack([part, 1 - part], axis=1) for part in (inside, ood)]
        return MethodPredictions(stacked[0], ood_probabilities=stacked[1])

    methods = {"MAP": with_ood(better), "SWAG": with_ood(outside), "SWA": with_ood(outside)}
    (found,) = compare_ood_detection(methods, method="SWAG", num_resamples=200, seed=2)
    areas = [
        auroc(1 - inside, 1 - ood) for ood in (outside, better)
    ]  # of two classes the entropy falls as the confidence rises
    assert found.difference.value == pytest.approx(areas[0] - areas[1])
    draws, differences = np.random.default_rng(2), []
    for _ in range(200):
        rows, ood_rows = draws.integers(150, size=150), draws.integers(150, size=150)
        one, two = (auroc(1 - inside[rows], 1 - ood[ood_rows]) for ood in (outside, better))
        differences.append(one - two)
    low, median, high = np.quantile(differences, [0.025, 0.5, 0.975])
    np.testing.assert_allclose(
        [found.difference.low, found.difference.high], found.difference.value + np.array([low, high]) - median, atol=1e-12
    )
    assert found.is_worse and str(found) == (
        "SWAG detects out-of-distribution (OOD) examples worse than MAP: the AUROC of its entropy is lower by "
        f"{-found.difference.value:.3f} [{-found.difference.high:.3f}, {-found.difference.low:.3f}] on 150 in-distribution and 150 OOD "
        "examples."
    )
    (equal,) = compare_ood_detection(methods, method="SWAG", other="SWA", num_resamples=5)
    assert str(equal).startswith(
        "SWAG and SWA cannot be told apart at detecting out-of-distribution (OOD) examples: for SWAG the AUROC"
    )
    without = {**methods, "MAP": MethodPredictions(methods["MAP"].probabilities)}
    assert compare_ood_detection(without, method="SWAG") == []
    assert compare_ood_detection(methods, method="MAP") == []
    measured = measure(methods, np.zeros(150, int), num_resamples=20, seed=2)
    again = Measurement.from_json(measured.to_json())
    assert again.ood_verdict == measured.ood_verdict and again.ood_verdict.startswith("SWAG detects")
    assert [each.metric for each in again.comparisons] == ["nll", "nll", "auroc_entropy"]
    assert "detects" not in again.verdict


def test_too_few_examples_have_no_verdict(three):
    # Red for: an interval of no width, which one example has, and a victory by it.
    methods, labels = three
    few = {name: MethodPredictions(each.probabilities[:19]) for name, each in methods.items()}
    assert compare(few, labels[:19], method="SWAG") == []
    assert measure(few, labels[:19], num_resamples=5).verdict is None
    with pytest.raises(SwagError, match="'Magic'"):
        compare(methods, labels, method="Magic")


def test_a_measurement_holds_the_comparisons_and_its_file_gives_them_back(three):
    # Red for: comparisons with another method than the posterior's, a file of an earlier version that is refused for lack of them.
    methods, labels = three
    measured = measure(methods, labels, num_resamples=200, level=0.9, seed=3)
    assert measured.comparisons == compare(methods, labels, method="SWAG", num_resamples=200, level=0.9, seed=3)
    again = Measurement.from_json(measured.to_json())
    assert again.comparisons == measured.comparisons and again.verdict == measured.verdict
    assert {each.method for each in measure(methods, labels, compared="MAP", num_resamples=2).comparisons} == {"MAP"}
    document = json.loads(measured.to_json())
    del document["comparisons"]
    assert Measurement.from_json(json.dumps(document)).verdict is None
