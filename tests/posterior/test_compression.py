import json
import struct
from dataclasses import asdict, replace

import pytest
import torch
from oracles import dense_covariance
from test_swag import KEYS, a_posterior, rewrite

from swag_trainer import PosteriorFormatError, SwagError, load_posterior
from swag_trainer.posterior.compression import compress
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.storage import content_digest, read_file


def a_gaussian(rank=6, directions=3, size=400) -> LowRankGaussian:
    """Deviations of a given true rank, whose directions have the energies 1, 1e-2, 1e-4, ..., and a variance with zeros."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, directions, generator=generator, dtype=torch.float64))[0].T
    turn = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))[0][:, :directions]
    lengths = 10.0 ** -torch.arange(directions, dtype=torch.float64)
    variance = torch.rand(size, generator=generator)
    variance[:3] = torch.tensor([0.0, 1e-30, 1e-40])
    return LowRankGaussian(
        torch.randn(size, generator=generator),
        variance,
        (turn * lengths @ basis * 0.01).float() if directions else basis.float(),
    )


def test_a_compressed_gaussian_has_the_covariance_of_the_paper_up_to_the_rounding_of_bfloat16():
    # Red for: r - 1 in place of K - 1, a transposed rotation, directions stored without their lengths. Each number is rounded by at
    # most 2^-9 of itself, so each of the covariance by 2^-8 of the largest that it is a sum of.
    plain = a_gaussian(directions=2)
    compressed, _ = compress(plain)
    expected = dense_covariance(plain.variance, plain.deviations)
    found = dense_covariance(compressed.variance, compressed.deviations)
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=2**-8 * float(expected.abs().max()))
    assert (compressed.rank, len(compressed.directions)) == (6, 2)


def test_displacement_and_factors_of_a_compressed_gaussian_have_its_dense_covariance_exactly():
    # Red for: noise of r numbers, a rotation left out, a normaliser of r. Identity in place of noise makes the map its own matrix.
    gaussian, _ = compress(a_gaussian())
    K, P = gaussian.deviations.shape
    dense = dense_covariance(gaussian.variance, gaussian.rotation.double() @ gaussian.directions.double())
    root = torch.cat(
        [
            gaussian.displacement(torch.eye(P).double(), torch.zeros(P, K).double()),
            gaussian.displacement(torch.zeros(K, P).double(), torch.eye(K).double()),
        ]
    )
    torch.testing.assert_close(root.T @ root, dense, rtol=1e-12, atol=1e-14)
    diagonal, low_rank = (part.double() for part in gaussian.factors(3.0))
    torch.testing.assert_close(torch.diag(diagonal) + low_rank.T @ low_rank, 3 * dense, rtol=1e-6, atol=1e-9)


def test_directions_with_a_ten_millionth_of_the_energy_together_are_dropped_and_recorded():
    # Red for: a limit on lengths instead of energies or for each direction alone, and a choice that is not recorded.
    gaussian, compression = compress(a_gaussian(directions=6))  # energies 1, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10 (/ 1.0101)
    assert len(gaussian.directions) == 4
    assert compression.dropped_energy_limit == 1e-7
    assert compression.dropped_energy == pytest.approx(1.01e-8 / 1.010101, rel=1e-2)


def test_zeros_and_tiny_variances_survive():
    # Red for: half precision, whose smallest number is 6e-8.
    compressed, _ = compress(a_gaussian())
    assert compressed.variance[0] == 0
    torch.testing.assert_close(compressed.variance[1], torch.tensor(1e-30), rtol=2**-8, atol=0)
    assert compressed.variance[2] > 0


def test_weights_that_never_moved_leave_no_direction():
    # Red for: a division by an energy of zero.
    still = LowRankGaussian(torch.ones(5), torch.zeros(5), torch.zeros(3, 5))
    gaussian, compression = compress(still)
    assert (gaussian.rank, len(gaussian.directions), compression.dropped_energy) == (3, 0, 0.0)
    assert torch.equal(gaussian.sample(2, seed=0), torch.ones(2, 5))


@pytest.mark.parametrize("design", ["matched", "iid"])
def test_a_seed_gives_the_same_draws_from_a_small_file(tmp_path, design):
    # Red for: noise drawn for r directions, or rotated the wrong way. A step of 1 is off by 2^-9 of itself at most.
    posterior = a_posterior()
    posterior.save_pretrained(tmp_path)
    expected = posterior.draw(4, seed=3, design=design).vectors
    draws = load_posterior(tmp_path).draw(4, seed=3, design=design).vectors
    torch.testing.assert_close(draws, expected, rtol=0, atol=2**-8 * float((expected - posterior.mean_vector()).abs().max()))
    assert not torch.equal(draws, expected)


@pytest.mark.parametrize("rank", [0, 3])
def test_loading_a_small_file_and_saving_it_again_changes_nothing(tmp_path, rank):
    # Red for: a second rotation, or bfloat16 rounded once more.
    a_posterior(rank).save_pretrained(tmp_path / "first")
    load_posterior(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / name / POSTERIOR_FILE).read_bytes() for name in ("first", "second"))
    assert first == second


def test_what_is_loaded_is_what_stored_as_promises_and_float32_restores_plain_deviations(tmp_path):
    # Red for: a posterior changed in place by saving it, deviations in a rotated order.
    posterior = a_posterior()
    posterior.save_pretrained(tmp_path)
    loaded = load_posterior(tmp_path)
    stored = posterior.stored_as("bfloat16")
    assert torch.equal(loaded.draw(3, seed=0).vectors, stored.draw(3, seed=0).vectors)
    assert posterior.gaussian.rotation is None and posterior.compression is None
    plain = loaded.stored_as("float32")
    assert plain.gaussian.rotation is None and plain.compression is None
    for key in KEYS:
        torch.testing.assert_close(plain.deviations[key], posterior.deviations[key], rtol=0, atol=0.02)
    torch.testing.assert_close(loaded.last_snapshot(), posterior.last_snapshot(), rtol=0, atol=0.02)
    assert torch.equal(loaded.last_snapshot(), loaded.gaussian.mean + loaded.gaussian.deviations[-1])


def test_a_compressed_posterior_is_carried_over_to_other_weights():
    # Red for: a rotation dropped by reparametrised, so that the noise no longer fits.
    stored = a_posterior().stored_as("bfloat16")
    doubled = stored.reparametrised(
        stored.layout, stored.record, stored.adapter, position=lambda v: 2 * v, displacement=lambda v: 2 * v
    )
    steps = stored.draw(3, seed=0).vectors - stored.mean_vector()
    low_rank = 2 * stored.gaussian.deviations
    assert torch.equal(doubled.gaussian.deviations, low_rank) and doubled.rank == stored.rank and steps.abs().max() > 0


def _text_rotation(tensors, document):
    tensors["rotation"] = tensors["rotation"].double()


def _short_rotation(tensors, document):
    tensors["rotation"] = tensors["rotation"][:, :1]


def _flat_rotation(tensors, document):
    tensors["rotation"] = tensors["rotation"].flatten()


def _more_directions_than_deviations(tensors, document):
    tensors["rotation"] = tensors["rotation"][:2]


def _more_deviations_than_snapshots(tensors, document):
    tensors["rotation"] = torch.ones(6, tensors["rotation"].shape[1])


def _one_deviation(tensors, document):
    for key in KEYS:
        tensors[f"directions/{key}"] = tensors[f"directions/{key}"][:1]
    tensors["rotation"] = torch.ones(1, 1)


def _float_directions(tensors, document):
    tensors[f"directions/{KEYS[0]}"] = tensors[f"directions/{KEYS[0]}"].float()


def _no_rotation(tensors, document):
    del tensors["rotation"]


def _nothing_stated(tensors, document):
    del document["metadata"]["storage"]


def _energy_above_one(tensors, document):
    document["metadata"]["storage"]["dropped_energy"] = 1.5


def _unknown_statement(tensors, document):
    document["metadata"]["storage"]["dtype"] = "bfloat16"


def _list_statement(tensors, document):
    document["metadata"]["storage"] = []


@pytest.mark.parametrize(
    "change",
    [
        _text_rotation,
        _short_rotation,
        _flat_rotation,
        _more_directions_than_deviations,
        _more_deviations_than_snapshots,
        _one_deviation,
        _float_directions,
        _no_rotation,
        _nothing_stated,
        _energy_above_one,
        _unknown_statement,
        _list_statement,
    ],
)
def test_a_small_file_that_cannot_be_is_refused_with_its_name(tmp_path, change):
    # Red for: any check of a compressed Gaussian left out.
    a_posterior().save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(PosteriorFormatError, match=POSTERIOR_FILE):
        load_posterior(tmp_path)


def test_a_file_of_version_1_is_read_bit_for_bit(tmp_path):
    # Red for: a version 1 that is refused, or whose flat document (there was one family, and no "kind") is not understood. Written by
    # hand, as the format was.
    posterior = a_posterior(scale=2.0)
    posterior.save_pretrained(tmp_path, dtype="float32")
    tensors, _, _ = read_file(tmp_path / POSTERIOR_FILE)
    record = {name: value for name, value in posterior.record.as_document().items() if name != "task"}
    document = record | asdict(posterior.collection)
    envelope = {"format_version": 1, "digest": content_digest(tensors, document), "document": document}
    header, data = {"__metadata__": {"swag_trainer": json.dumps(envelope)}}, b""
    for name, tensor in tensors.items():
        start, data = len(data), data + tensor.numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    (tmp_path / POSTERIOR_FILE).write_bytes(struct.pack("<Q", len(text)) + text + data)
    loaded = load_posterior(tmp_path)
    assert (loaded.record, loaded.collection) == (replace(posterior.record, task=None), posterior.collection)
    assert torch.equal(loaded.draw(4, seed=3).vectors, posterior.draw(4, seed=3).vectors)


def test_the_digest_is_that_of_the_posterior_whatever_its_file(tmp_path):
    # Red for: a digest over the rounded variance, or over what is stated about the file; one that forgets scale, mean or kind.
    posterior = a_posterior()
    for dtype in ("bfloat16", "float32"):
        posterior.save_pretrained(tmp_path / dtype, dtype=dtype)
        assert load_posterior(tmp_path / dtype).digest == posterior.digest
    moved = replace(posterior, gaussian=replace(posterior.gaussian, mean=posterior.gaussian.mean + 1))
    collected = replace(posterior, collection=replace(posterior.collection, last_step=11))
    assert len({value.digest for value in (posterior, posterior.with_scale(0.5), moved, collected)}) == 4


def test_an_unknown_precision_is_refused_before_anything_is_written(tmp_path):
    # Red for: a typing error that is taken for the default.
    with pytest.raises(SwagError, match="'float16'"):
        a_posterior().save_pretrained(tmp_path / "new", dtype="float16")
    assert not (tmp_path / "new").exists()
