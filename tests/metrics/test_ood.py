import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from probability_cases import probability_cases
from scipy.stats import entropy
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from swag_trainer.metrics.ood import aupr, auroc, fpr_at_tpr, uncertainty_scores


def score_cases(count=1000):
    """Scores of in-distribution and OOD examples: plain, tied, all equal, told apart, told apart the wrong way round, very few."""
    for index in range(count):
        generator = np.random.default_rng(index)
        id_scores, ood_scores = (
            generator.normal(size=generator.integers(1, 60)),
            generator.normal(0.7, size=generator.integers(1, 60)),
        )
        kind = index % 6
        if kind == 1:
            id_scores, ood_scores = id_scores.round(), ood_scores.round()
        elif kind == 2:
            id_scores, ood_scores = np.zeros_like(id_scores), np.zeros_like(ood_scores)
        elif kind == 3:
            ood_scores = ood_scores + 20
        elif kind == 4:
            ood_scores = ood_scores - 20
        elif kind == 5:
            id_scores, ood_scores = id_scores[:2], ood_scores[:2]
        yield id_scores, ood_scores


def test_areas_are_those_of_scikit_learn():
    # Red for: in-distribution as the positive class, ties counted in full or not at all, a trapezium under the precision.
    for id_scores, ood_scores in score_cases():
        is_ood = np.repeat([0, 1], [len(id_scores), len(ood_scores)])
        scores = np.concatenate([id_scores, ood_scores])
        assert auroc(id_scores, ood_scores) == pytest.approx(roc_auc_score(is_ood, scores), abs=1e-9)
        assert aupr(id_scores, ood_scores) == pytest.approx(average_precision_score(is_ood, scores), abs=1e-9)


def test_areas_are_those_of_torchmetrics():
    # Red for: what scikit-learn and we could both be wrong about. Their scores must be probabilities, hence the logistic function.
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.functional.classification")
    for id_scores, ood_scores in score_cases():
        is_ood = torch.tensor(np.repeat([0, 1], [len(id_scores), len(ood_scores)]))
        scores = torch.tensor(np.concatenate([id_scores, ood_scores])).sub(10).div(15).sigmoid()
        ours = scores.numpy()[: len(id_scores)], scores.numpy()[len(id_scores) :]
        # Their sums run in float32.
        assert auroc(*ours) == pytest.approx(float(functional.binary_auroc(scores, is_ood, validate_args=False)), abs=2e-6)
        theirs = functional.binary_average_precision(scores, is_ood, validate_args=False)
        assert aupr(*ours) == pytest.approx(float(theirs), abs=2e-6)


def test_the_false_alarms_are_those_of_the_first_threshold_that_finds_enough():
    # Red for: a threshold one OOD example too strict or too lax, > for >=, the two classes exchanged.
    for id_scores, ood_scores in score_cases():
        is_ood = np.repeat([0, 1], [len(id_scores), len(ood_scores)])
        alarms, found, _ = roc_curve(is_ood, np.concatenate([id_scores, ood_scores]), drop_intermediate=False)
        for tpr in (0.05, 0.5, 0.95, 1.0):
            assert fpr_at_tpr(id_scores, ood_scores, tpr) == pytest.approx(alarms[found >= tpr - 1e-9][0], abs=1e-9)


def test_a_share_that_is_a_whole_number_of_rows_is_not_rounded_up():
    # Red for: ceil(0.55 * 100 = 55.00000000000001) = 56, whose threshold is 44.
    assert fpr_at_tpr([44.5], np.arange(100.0), tpr=0.55) == 0
    assert fpr_at_tpr([45.0], np.arange(100.0), tpr=0.55) == 1


SCORES = arrays(np.float64, st.integers(1, 30), elements=st.integers(-4, 4).map(float))


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES)
def test_the_area_is_turned_round_with_the_classes_and_blind_to_the_unit(id_scores, ood_scores):
    # Red for: ties given to one side.
    assert auroc(id_scores, ood_scores) + auroc(ood_scores, id_scores) == pytest.approx(1)
    assert auroc(np.exp(id_scores), np.exp(ood_scores)) == auroc(id_scores, ood_scores)
    assert aupr(np.exp(id_scores), np.exp(ood_scores)) == aupr(id_scores, ood_scores)


def test_the_scores_of_random_rows_are_those_of_their_definitions():
    # Red for: base 2, 0 log 0 = NaN, the smallest probability in place of the largest, a mean over the rows.
    for probabilities, _ in probability_cases(1000):
        scores = uncertainty_scores(probabilities)
        np.testing.assert_allclose(scores["entropy"], entropy(probabilities, axis=1), atol=1e-9)
        np.testing.assert_allclose(scores["one_minus_max"], [1 - max(row) for row in probabilities.tolist()], atol=1e-9)


def test_scores_are_higher_where_a_method_is_less_sure():
    # Red for: the largest probability itself, base 2, 0 log 0 = NaN.
    probabilities = np.array([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    scores = uncertainty_scores(probabilities)
    assert list(scores) == ["entropy", "one_minus_max"]
    np.testing.assert_allclose(scores["entropy"], entropy(probabilities, axis=1), atol=1e-12)
    np.testing.assert_allclose(scores["one_minus_max"], [0, 0.4, 2 / 3])
    information = uncertainty_scores(probabilities, [0.1, 0.2, 0.3])["mutual_information"]
    assert information.tolist() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("measure", [auroc, aupr, fpr_at_tpr])
@pytest.mark.parametrize(("id_scores", "ood_scores"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([[1.0]], [1.0])])
def test_scores_that_cannot_be_are_refused(measure, id_scores, ood_scores):
    # Red for: a figure from nothing, or a NaN sorted to the end as if it were the surest alarm.
    with pytest.raises(ValueError, match="Scores of"):
        measure(id_scores, ood_scores)


def test_shares_and_lengths_that_cannot_be_are_refused():
    # Red for: a threshold below every row, or information of other rows.
    for tpr in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="tpr"):
            fpr_at_tpr([0.0], [1.0], tpr)
    with pytest.raises(ValueError, match="2 rows have 1"):
        uncertainty_scores(np.eye(2), [0.1])
    with pytest.raises(ValueError, match="sum to 1"):
        uncertainty_scores(2 * np.eye(2))
