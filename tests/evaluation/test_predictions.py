import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.special import softmax

from swag_trainer.errors import SwagError
from swag_trainer.evaluation.measurement import measure
from swag_trainer.evaluation.predictions import MethodPredictions, read_draws
from swag_trainer.metrics.ood import auroc
from swag_trainer.prediction.predictive import Predictive

S, N, M, C = 4, 6, 5, 3
LOGITS = torch.randn(S, N, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IN_DISTRIBUTION, OOD = LOGITS.softmax(-1).numpy(), (2 * LOGITS[:, :M]).softmax(-1).numpy()


def test_draws_give_what_the_predictive_of_their_logits_gives():
    # Red for: the entropy of one draw, bits, a mean over the rows, OOD examples left behind.
    ours = MethodPredictions.from_draws(IN_DISTRIBUTION, OOD, seconds_per_example=0.5)
    in_distribution, ood = Predictive.from_logits(LOGITS, "softmax"), Predictive.from_logits(2 * LOGITS[:, :M], "softmax")
    theirs = MethodPredictions.from_predictive(in_distribution, ood, seconds_per_example=0.5)
    for name in ("probabilities", "mutual_information", "ood_probabilities", "ood_mutual_information"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-12)
    np.testing.assert_allclose(ours.mutual_information, in_distribution.mutual_information, atol=1e-12)
    assert (ours.num_draws, ours.seconds_per_example) == (theirs.num_draws, theirs.seconds_per_example) == (S, 0.5)


def test_energy_and_ood_score_are_measured_where_both_data_sets_have_them():
    # Red for: a score under another's name, in-distribution and OOD examples exchanged, a method without the score that fails.
    inside, outside = Predictive.from_logits(LOGITS, "softmax"), Predictive.from_logits(0.1 * LOGITS[:, :M], "softmax")
    plain = MethodPredictions.from_predictive(inside, outside)
    scored = MethodPredictions.from_predictive(
        replace(inside, ood_score=np.linspace(0, 0.5, N)), replace(outside, ood_score=np.full(M, 0.45))
    )
    found = measure({"MAP": plain, "SWAG": scored}, np.zeros(N, int), num_resamples=10).metrics
    for ours, theirs in zip(plain.ood_scores["energy"], (inside.energy, outside.energy), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found["MAP"]["auroc_energy"].value == found["SWAG"]["auroc_energy"].value == auroc(inside.energy, outside.energy)
    assert found["SWAG"]["auroc_ood_score"].value == pytest.approx(5 / 6) and "auroc_ood_score" not in found["MAP"]
    assert MethodPredictions.from_predictive(inside).ood_scores["energy"][1] is None


def test_a_single_draw_has_no_mutual_information():
    # Red for: a column of zeros, which an AUROC of 0.5 would be reported from.
    assert MethodPredictions.from_draws(IN_DISTRIBUTION[:1], OOD[:1]).mutual_information is None
    one = Predictive.from_logits(LOGITS[:1], "softmax")
    answers = MethodPredictions.from_predictive(one, one)
    assert answers.mutual_information is None and answers.ood_mutual_information is None


@pytest.mark.parametrize("ood", [None, OOD])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_draws_come_back_from_a_file(tmp_path, kind, ood):
    # Red for: the two arrays exchanged, one kind of file only.
    path = tmp_path / f"draws.{kind}"
    arrays = {"probabilities": IN_DISTRIBUTION} | ({} if ood is None else {"ood_probabilities": ood})
    np.savez(path, **arrays) if kind == "npz" else save_file(arrays, path)
    from_file, expected = MethodPredictions.from_draws(path), MethodPredictions.from_draws(IN_DISTRIBUTION, ood)
    np.testing.assert_array_equal(from_file.probabilities, expected.probabilities)
    np.testing.assert_array_equal(from_file.mutual_information, expected.mutual_information)
    if ood is None:
        assert from_file.ood_probabilities is None
    else:
        np.testing.assert_array_equal(from_file.ood_probabilities, expected.ood_probabilities)


def test_the_name_that_earlier_versions_gave_to_the_ood_draws_is_read(tmp_path):
    # Red for: OOD examples of an older file that are silently left out.
    np.savez(tmp_path / "old.npz", probabilities=IN_DISTRIBUTION, foreign_probabilities=OOD)
    predictions = MethodPredictions.from_draws(tmp_path / "old.npz")
    np.testing.assert_array_equal(predictions.ood_probabilities, OOD.mean(axis=0))


def test_a_pickle_in_a_file_is_not_executed(tmp_path):
    # Red for: allow_pickle=True, which runs the code of an untrusted file.
    executed = []
    path = tmp_path / "draws.npz"
    np.savez(path, probabilities=np.array([Evil(executed)], dtype=object))
    with pytest.raises(SwagError, match="cannot be read"):
        read_draws(path)
    assert Evil.calls == 0


class Evil:
    calls = 0

    def __init__(self, _):
        pass

    def __reduce__(self):
        return Evil.call, ()

    @staticmethod
    def call():
        Evil.calls += 1


def damaged() -> bytes:
    """A compressed file of draws with a byte changed in the middle of the array."""
    file = io.BytesIO()
    np.savez_compressed(file, probabilities=np.random.default_rng(0).dirichlet(np.ones(3), size=(4, 50)))
    data = bytearray(file.getvalue())
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


DAMAGED = damaged()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("draws.npy", b"", "from .npz and .safetensors"),
        ("draws.npz", b"not a zip file", "cannot be read"),
        ("draws.npz", b"", "cannot be read"),
        ("draws.npz", DAMAGED, "cannot be read"),
        ("draws.npz", DAMAGED[: len(DAMAGED) // 2], "cannot be read"),
        ("draws.safetensors", b"\xff" * 100, "cannot be read"),
        ("nowhere/draws.npz", None, "cannot be read"),
        ("nowhere/draws.safetensors", None, "cannot be read"),
    ],
)
def test_files_that_hold_no_draws_are_refused(tmp_path, name, content, message):
    # Red for: a traceback out of zipfile, or an empty array.
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SwagError, match=message):
        MethodPredictions.from_draws(tmp_path / name)


def test_a_file_without_the_array_says_what_it_has(tmp_path):
    # Red for: a KeyError.
    np.savez(tmp_path / "draws.npz", logits=IN_DISTRIBUTION)
    with pytest.raises(SwagError, match=r"no array 'probabilities'.*\['logits'\]"):
        read_draws(tmp_path / "draws.npz")
    np.savez(tmp_path / "draws.npz", probabilities=IN_DISTRIBUTION)
    with pytest.raises(ValueError, match="beside it"):
        MethodPredictions.from_draws(tmp_path / "draws.npz", OOD)


@pytest.mark.parametrize(
    ("in_distribution", "ood", "message"),
    [
        (np.log(IN_DISTRIBUTION), None, "sum to 1"),
        (IN_DISTRIBUTION[0], None, "3 dimension"),
        (IN_DISTRIBUTION, OOD[:2], "4 draws, OOD examples 2"),
        (IN_DISTRIBUTION, softmax(np.zeros((S, M, 2)), axis=-1), "3 classes, OOD examples 2"),
    ],
)
def test_draws_that_do_not_fit_are_refused(in_distribution, ood, message):
    # Red for: logits averaged as if they were probabilities, or methods of other classes compared.
    with pytest.raises(ValueError, match=message):
        MethodPredictions.from_draws(in_distribution, ood)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mutual_information": np.zeros(N - 1)}, "6 examples have 5"),
        ({"ood_mutual_information": np.zeros(M)}, "no OOD examples"),
        ({"ood_probabilities": OOD[0], "mutual_information": np.zeros(N)}, "for neither"),
        ({"num_draws": 0}, "at least 1"),
        ({"ood_scores": {"energy": (np.zeros(N), np.zeros(M))}}, "0\\] in-distribution and OOD examples"),
        ({"ood_probabilities": OOD[0], "ood_scores": {"energy": (np.zeros(N), np.zeros(M + 1))}}, "'energy'"),
    ],
)
def test_predictions_check_themselves(change, message):
    # Red for: information of other rows, which would be matched to these.
    with pytest.raises(ValueError, match=message):
        MethodPredictions(IN_DISTRIBUTION[0], **change)
