import json
import os
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi
from oracles import dense_covariance

from swag_trainer import AdapterMismatchError, PosteriorFormatError, PosteriorNotFoundError, SwagError, SwagPosterior
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.moments import RunningMoments
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.storage import read_file, write_file
from swag_trainer.posterior.swag import SwagRecord

KEYS = ["base_model.model.lora_A.weight", "base_model.model.lora_B.weight"]


def a_posterior(rank=3, count=5, scale=1.0, base="user/base") -> SwagPosterior:
    generator = torch.Generator().manual_seed(rank)
    weights = {KEYS[0]: torch.randn(2, 3, generator=generator), KEYS[1]: torch.randn(3, 2, generator=generator)}
    layout = WeightLayout.of(weights)
    gaussian = LowRankGaussian(
        layout.flatten(weights),
        torch.rand(layout.size, generator=generator),
        torch.randn(rank, layout.size, generator=generator),
    )
    adapter = SavedAdapter({"base_model_name_or_path": base, "peft_type": "LORA"}, weights)
    record = PosteriorRecord(
        scale=scale,
        base_model=base,
        adapter_digest=adapter.digest,
        adapter_settings=adapter.settings,
        labels=["no", "yes"],
        versions={"torch": "2"},
    )
    return SwagPosterior(layout, gaussian, record, SwagRecord(count, "Every(steps=2)", 2, 10), adapter)


def rewrite(folder, change):
    """Change what a posterior's file holds, with a digest that is right again: what a hostile or careless author can do."""
    tensors, document, _ = read_file(folder / POSTERIOR_FILE)
    change(tensors, document)
    write_file(folder / POSTERIOR_FILE, tensors, document)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_posterior_comes_back_from_a_file_in_float32_bit_for_bit(tmp_path, rank):
    # Red for: rows of deviations mixed up between weights, a scale or a label lost.
    posterior = a_posterior(rank, scale=2.0)
    posterior.save_pretrained(tmp_path, dtype="float32")
    loaded = SwagPosterior.from_pretrained(tmp_path)
    for part in ("mean", "variance", "deviations"):
        for key, tensor in getattr(posterior, part).items():
            assert torch.equal(getattr(loaded, part)[key], tensor), (part, key)
    assert (loaded.record, loaded.collection) == (posterior.record, posterior.collection)
    assert (loaded.rank, loaded.scale, loaded.num_collected) == (rank, 2.0, 5)
    assert torch.equal(loaded.draw(4, seed=3).vectors, posterior.draw(4, seed=3).vectors)


def test_the_parts_of_the_posterior_have_the_shapes_of_the_weights():
    # Red for: deviations with K as the last axis.
    posterior = a_posterior()
    assert posterior.mean[KEYS[0]].shape == posterior.variance[KEYS[0]].shape == (2, 3)
    assert posterior.deviations[KEYS[0]].shape == (3, 2, 3)
    assert posterior.sample(4, seed=0)[KEYS[1]].shape == (4, 3, 2)


def test_draws_of_different_weights_share_their_low_rank_noise():
    # Red for: z2 drawn afresh for each tensor, which loses every covariance between tensors. 20,000 draws: good to 5 %.
    posterior = a_posterior()
    draws = posterior.sample(20_000, seed=0, design="iid")
    flat = torch.cat([draws[key].flatten(1) for key in posterior.layout.keys], dim=1).double()
    covariance = dense_covariance(posterior.gaussian.variance, posterior.gaussian.deviations)
    torch.testing.assert_close(flat.T.cov(), covariance, rtol=0, atol=0.05 * float(covariance.diagonal().max()))
    assert covariance[:6, 6:].abs().max() > 0.3


def test_the_default_scale_of_draws_is_the_posteriors_own():
    # Red for: a scale that is stored and then forgotten.
    posterior = a_posterior(scale=4.0)
    assert torch.equal(posterior.draw(3, seed=0).vectors, posterior.with_scale(1.0).draw(3, scale=4.0, seed=0).vectors)
    assert not torch.equal(posterior.draw(3, seed=0).vectors, posterior.with_scale(1.0).draw(3, seed=0).vectors)


def collected(vectors, rank, scale=1.0):
    """The posterior of snapshots. Shape (N, P) of those of `a_posterior`."""
    moments = RunningMoments(vectors.shape[1], rank)
    for vector in vectors:
        moments.fold(vector)
    gaussian = LowRankGaussian(moments.mean, moments.variance, moments.deviations)
    return replace(a_posterior(scale=scale, count=len(vectors)), gaussian=gaussian)


@pytest.mark.parametrize(
    ("count", "rank", "number"), [(30, 20, 9), (30, 30, 9), (11, 20, 4), (2, 5, 1), (50, 10, 10), (3, 2, 1)]
)
@pytest.mark.parametrize("stored", [False, True])
def test_the_centres_are_means_of_the_first_to_the_last_of_the_last_and_of_the_last_snapshots(
    count, rank, number, stored, tmp_path
):
    # Red for: deviations averaged as if they were from one mean, a fraction rounded down, more snapshots than deviations kept.
    generator = torch.Generator().manual_seed(count)
    drift = torch.linspace(0, 3, count)[:, None] * torch.randn(12, generator=generator)
    vectors = drift + 0.3 * torch.randn(count, 12, generator=generator) + 5
    posterior = collected(vectors, rank)
    if stored:
        posterior.save_pretrained(tmp_path)
        posterior = SwagPosterior.from_pretrained(tmp_path)
    atol = 0.02 if stored else 2e-5  # bfloat16 rounds deviations of up to 3 to 2^-9 of themselves
    for name, snapshots in (("mean", vectors), ("tail", vectors[-number:]), ("last", vectors[-1:])):
        torch.testing.assert_close(posterior.center(name), snapshots.double().mean(0).float(), rtol=0, atol=atol)
    assert posterior.centers == ("mean", "tail", "last")


def test_centres_are_carried_over_to_other_weights_as_any_weights_are():
    # Red for: a centre kept in the coordinates of the old weights.
    vectors = torch.randn(10, 12, generator=torch.Generator().manual_seed(0))
    posterior = collected(vectors, 5)
    moved = posterior.reparametrised(
        posterior.layout, posterior.record, posterior.adapter, position=lambda v: 1 + 2 * v, displacement=lambda v: 2 * v
    )
    for name in ("mean", "tail", "last"):
        torch.testing.assert_close(moved.center(name), 1 + 2 * posterior.center(name), rtol=0, atol=1e-5)


def test_without_deviations_there_is_only_the_mean():
    # Red for: a last snapshot out of no deviations.
    posterior = a_posterior(rank=0)
    assert posterior.centers == ("mean",) and torch.equal(posterior.center("mean"), posterior.mean_vector())
    with pytest.raises(SwagError, match="'mean'.*'last'"):
        posterior.center("last")


@pytest.mark.parametrize("rank", [0, 3])
def test_the_relative_energy_is_the_expected_squared_step_of_a_draw_over_the_squared_length_of_the_mean(rank):
    # Red for: the length in place of its square, the scale squared or left out. 40,000 draws: good to 2 %.
    posterior = a_posterior(rank, scale=2.0)
    steps = posterior.draw(40_000, seed=0, design="iid").vectors - posterior.mean_vector()
    expected = float(steps.square().sum(1).mean() / posterior.mean_vector().square().sum())
    assert posterior.relative_energy() == pytest.approx(expected, rel=0.02)
    assert posterior.relative_energy(0.5) == pytest.approx(posterior.relative_energy() / 4, rel=1e-12)
    with pytest.raises(SwagError, match="scale.*-1"):
        posterior.relative_energy(-1)


def test_draws_do_not_depend_on_the_number_of_threads():
    # Red for: sums whose order follows the threads.
    posterior, threads = a_posterior(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = posterior.draw(10, seed=0).vectors
        torch.set_num_threads(2)
        assert torch.equal(one, posterior.draw(10, seed=0).vectors)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "arguments",
    [{"num_samples": 0}, {"num_samples": -1}, {"num_samples": 2, "scale": -1}, {"num_samples": 2, "scale": float("nan")}],
)
def test_a_number_out_of_range_is_refused(arguments):
    # Red for: zero draws that average to NaN, or a root of a negative scale.
    with pytest.raises(SwagError, match=r"got (0|-1|nan)"):
        a_posterior().sample(**arguments)


def test_a_folder_with_an_adapter_only_is_refused_by_name(tmp_path):
    # Red for: a point estimate that answers in the posterior's name.
    a_posterior().adapter.write(tmp_path)
    with pytest.raises(PosteriorNotFoundError, match=rf"{tmp_path.name}.*has no {POSTERIOR_FILE}"):
        SwagPosterior.from_pretrained(tmp_path)


def test_another_adapter_beside_the_posterior_is_refused_unless_accepted(tmp_path):
    # Red for: a posterior whose uncertainty is about other weights.
    posterior = a_posterior()
    posterior.save_pretrained(tmp_path)
    other = SavedAdapter(posterior.adapter.config, {key: tensor + 1 for key, tensor in posterior.adapter.tensors.items()})
    other.write(tmp_path)
    with pytest.raises(AdapterMismatchError, match="ignore_mismatched_adapter=True"):
        SwagPosterior.from_pretrained(tmp_path)
    assert SwagPosterior.from_pretrained(tmp_path, ignore_mismatched_adapter=True).adapter.digest == other.digest


@pytest.mark.parametrize(
    "tensors",
    [
        {KEYS[0]: torch.zeros(2, 3)},
        {KEYS[0]: torch.zeros(4, 3), KEYS[1]: torch.zeros(3, 2)},
    ],
)
def test_an_adapter_of_other_names_or_shapes_is_never_accepted(tmp_path, tensors):
    # Red for: ignore_mismatched_adapter switching off the comparison of keys and shapes too.
    posterior = a_posterior()
    posterior.save_pretrained(tmp_path)
    SavedAdapter(posterior.adapter.config, tensors).write(tmp_path)
    with pytest.raises(AdapterMismatchError, match="lora_"):
        SwagPosterior.from_pretrained(tmp_path, ignore_mismatched_adapter=True)


def test_another_base_model_is_refused_unless_accepted(tmp_path):
    # Red for: comparing the adapter's tensors only.
    a_posterior().save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace("user/base", "user/other"))
    with pytest.raises(AdapterMismatchError, match=r"'user/base'.*'user/other'"):
        SwagPosterior.from_pretrained(tmp_path)
    assert SwagPosterior.from_pretrained(tmp_path, ignore_mismatched_adapter=True).adapter.base_model == "user/other"


def _negative(tensors, document):
    tensors[f"variance/{KEYS[0]}"][0, 0] = -1e-9


def _missing(tensors, document):
    del tensors[f"variance/{KEYS[1]}"]


def _half(tensors, document):
    tensors[f"mean/{KEYS[0]}"] = tensors[f"mean/{KEYS[0]}"].half()


def _ragged(tensors, document):
    tensors[f"deviations/{KEYS[0]}"] = tensors[f"deviations/{KEYS[0]}"][:2]


def _one_row(tensors, document):
    for key in KEYS:
        tensors[f"deviations/{key}"] = tensors[f"deviations/{key}"][:1]


def _stray(tensors, document):
    tensors["momentum/x"] = torch.zeros(1)


def _more_rows_than_snapshots(tensors, document):
    document["num_collected"] = 2


def _unknown_fact(tensors, document):
    document["temperature"] = 2.0


def _text_for_number(tensors, document):
    document["record"]["scale"] = "1"


def _infinite_scale(tensors, document):
    document["record"]["scale"] = float("inf")


@pytest.mark.parametrize(
    "change",
    [
        _negative,
        _missing,
        _half,
        _ragged,
        _one_row,
        _stray,
        _more_rows_than_snapshots,
        _unknown_fact,
        _text_for_number,
        _infinite_scale,
    ],
)
def test_values_that_no_posterior_can_have_are_refused_with_the_files_name(tmp_path, change):
    # Red for: any check of from_tensors or from_document left out.
    a_posterior().save_pretrained(tmp_path, dtype="float32")
    rewrite(tmp_path, change)
    with pytest.raises(PosteriorFormatError, match=POSTERIOR_FILE):
        SwagPosterior.from_pretrained(tmp_path)


def test_saving_twice_leaves_a_pair_that_belongs_together(tmp_path):
    # Red for: an adapter of an earlier run kept beside a new posterior.
    a_posterior(2).save_pretrained(tmp_path)
    a_posterior(3).save_pretrained(tmp_path)
    assert SwagPosterior.from_pretrained(tmp_path).rank == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        POSTERIOR_FILE,
    ]


def test_a_push_is_one_commit_that_can_be_pinned(hub):
    # Red for: upload_folder, which may split, or a file after the other; a revision that is not passed on.
    first = a_posterior(2).push_to_hub("user/pinned", private=True, card="---\ntags: [swag-lora]\n---\n# Hello")
    second = a_posterior(3).push_to_hub("user/pinned", commit_message="More columns")
    commits = HfApi().list_repo_commits("user/pinned")
    assert [commit.title for commit in commits] == ["More columns", "Upload SWAG posterior", "initial commit"]
    assert commits[0].commit_id == second.oid
    assert set(HfApi().list_repo_files("user/pinned")) >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        POSTERIOR_FILE,
        "README.md",
    }
    assert SwagPosterior.from_pretrained("user/pinned").rank == 3
    assert SwagPosterior.from_pretrained("user/pinned", revision=first.oid).rank == 2


def test_a_busy_hub_is_asked_again(hub, monkeypatch):
    # Red for: one 503 on the commit losing the push; the client itself does not retry.
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.hub.fail["/api/models/user/busy/commit/"] = 2
    a_posterior().push_to_hub("user/busy")
    assert SwagPosterior.from_pretrained("user/busy").rank == 3


def test_a_push_that_fails_says_that_nothing_was_committed(hub):
    # Red for: an error of the HTTP library, or a partial commit.
    with pytest.raises(SwagError, match=r"Nothing was committed to 'somebody-else/x'"):
        a_posterior().push_to_hub("somebody-else/x")


def test_a_push_without_a_connection_says_so_too(monkeypatch):
    # Red for: the HTTP library's own error, which is no child of huggingface_hub's.
    from swag_trainer import hub as module

    monkeypatch.setattr(module, "HfApi", lambda token: HfApi(endpoint="http://127.0.0.1:9", token="hf_test"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SwagError, match="Nothing was committed to 'user/x'"):
        a_posterior().push_to_hub("user/x")


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("user/nowhere", None, r"no repository 'user/nowhere'.*private"),
        ("user/bare", None, rf"'user/bare'.*has no {POSTERIOR_FILE}.*SwagCallback"),
        ("user/bare", "v9", r"'user/bare' has no revision 'v9'"),
        ("no folder/and no/repository", None, "neither a folder that exists nor the id"),
    ],
)
def test_what_is_missing_on_the_hub_is_named(hub, name, revision, expected):
    # Red for: one message for all four.
    HfApi().create_repo("user/bare", exist_ok=True)
    with pytest.raises(PosteriorNotFoundError, match=expected):
        SwagPosterior.from_pretrained(name, revision=revision)


def test_a_hub_that_does_not_answer_is_not_reported_as_a_missing_posterior(hub, monkeypatch):
    # Red for: "does not exist" said after a failure of the network.
    a_posterior().push_to_hub("user/silent")
    hub.hub.fail["user/silent"] = 10_000
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    try:
        with pytest.raises(SwagError) as caught:
            SwagPosterior.from_pretrained("user/silent", force_download=True)
    finally:
        del hub.hub.fail["user/silent"]
    assert "has no" not in str(caught.value) and "There is no" not in str(caught.value)


def test_the_representation_has_sizes_and_no_numbers_of_the_weights():
    # Red for: a dataclass that prints its tensors.
    assert repr(a_posterior()) == (
        "SwagPosterior(2 weights, P=12, num_collected=5 (steps 2 to 10), rank=3, scale=1, not tuned, base_model='user/base')"
    )


def test_the_collections_record_survives_json():
    # Red for: a field that JSON cannot carry.
    posterior = a_posterior()
    posterior = replace(posterior, collection=replace(posterior.collection, first_learning_rate=1e-4))
    assert SwagRecord.from_document(json.loads(json.dumps(posterior.metadata())), where="here") == posterior.collection


def damaging(flip_at):
    """An ``os.fsync`` of a disk that flips the bits of one byte of every file, counted from its end."""
    real = os.fsync

    def fsync(descriptor):
        size = os.fstat(descriptor).st_size
        if size > 200:
            os.pwrite(descriptor, b"\x55", size - flip_at)
        real(descriptor)

    return fsync


def test_what_cannot_be_read_back_replaces_nothing(tmp_path, monkeypatch):
    # Red for: an adapter with values that the reader refuses, or a disk that lies, in the place of files that could be read.
    before = a_posterior()
    before.save_pretrained(tmp_path)
    key, tensor = next(iter(before.adapter.tensors.items()))
    infinite = replace(before.adapter, tensors={**before.adapter.tensors, key: tensor / 0})
    with pytest.raises(SwagError, match=r"cannot be read back, and the files there stay as they were.*values of .* are not"):
        replace(before, adapter=infinite).save_pretrained(tmp_path)
    monkeypatch.setattr("swag_trainer.posterior.atomic.os.fsync", damaging(flip_at=3))
    with pytest.raises(SwagError, match="cannot be read back"):
        before.with_scale(2.0).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert SwagPosterior.from_pretrained(tmp_path).scale == before.scale
    assert len(list(tmp_path.iterdir())) == 3
