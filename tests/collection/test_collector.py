import logging

import pytest
import torch
from conftest import lora_model
from oracles import two_pass_moments

from swag_trainer import AdapterMismatchError, PosteriorFormatError, SwagError, TooFewCollectionsError
from swag_trainer.collection.collector import SwagCollector


def wander(model, generator):
    """A training step that needs no data: every trained weight moves a little."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)


def collected(base_folder, steps=7, rank=3):
    model = lora_model(base_folder)
    collector = SwagCollector(model, rank=rank, schedule="by hand")
    generator, vectors = torch.Generator().manual_seed(0), []
    for step in range(1, steps + 1):
        wander(model, generator)
        assert collector.collect(step=step, learning_rate=0.1 * step)
        vectors.append(collector.layout.flatten(collector.weights.read()))
    return model, collector, torch.stack(vectors) if vectors else None


def test_the_posterior_has_the_moments_of_the_trajectory_and_its_story(base_folder):
    # Red for: weights that are collected by reference, or facts of the wrong snapshot.
    _, collector, vectors = collected(base_folder)
    posterior = collector.posterior()
    mean, variance, deviations = two_pass_moments(vectors)
    torch.testing.assert_close(posterior.gaussian.mean.double(), mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(posterior.gaussian.variance.double(), variance, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(posterior.gaussian.deviations.double(), deviations[-3:], rtol=1e-5, atol=1e-7)
    facts, record = posterior.collection, posterior.record
    assert (facts.num_collected, facts.first_step, facts.last_step, facts.schedule) == (7, 1, 7, "by hand")
    assert (facts.first_learning_rate, facts.last_learning_rate) == pytest.approx((0.1, 0.7))
    assert record.labels == ["negative", "neutral", "positive"]
    assert (record.base_model, record.task) == (str(base_folder), "swag-text-classification")
    assert record.adapter_digest == collector.weights.saved().digest


def test_head_and_lora_matrices_are_collected_and_nothing_else(base_folder):
    # Red for: LoRA matrices without the head, or frozen weights counted in.
    _, collector, _ = collected(base_folder, steps=2)
    assert set(collector.layout.keys) == set(collector.weights.saved().tensors)
    assert sum("lora_" in key for key in collector.layout.keys) == 8
    assert sum("classifier" in key for key in collector.layout.keys) == 2


def test_weights_that_are_not_finite_are_skipped_counted_and_named_once(base_folder, caplog):
    # Red for: NaN folded into the moments, where it stays for good.
    model, collector, _ = collected(base_folder, steps=2)
    head = model.get_base_model().classifier.modules_to_save["default"].weight
    with torch.no_grad():
        head[0, 0] = float("nan")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert not collector.collect(step=3)
        assert not collector.collect(step=4)
    assert collector.moments.count == 2
    assert torch.isfinite(collector.moments.mean).all()
    assert collector.posterior().collection.num_skipped == 2
    assert len(caplog.records) == 1
    assert "Step 3" in caplog.text and "classifier.weight" in caplog.text


def test_weights_that_did_not_move_are_not_counted_twice(base_folder):
    # Red for: a step that loss scaling skipped counted as a snapshot.
    _, collector, _ = collected(base_folder, steps=2)
    assert not collector.collect(step=3)
    assert collector.moments.count == 2
    assert collector.snapshots.steps == [1, 2]


def test_an_adapter_that_is_replaced_between_two_collections_is_refused(base_folder):
    # Red for: collecting from parameters that the model no longer has.
    model, collector, _ = collected(base_folder, steps=2)
    layer = model.get_base_model().bert.encoder.layer[1].attention.self.query
    layer.lora_A["default"] = torch.nn.Linear(32, 2, bias=False)
    with pytest.raises(AdapterMismatchError, match=r"layer\.1\.attention\.self\.query\.lora_A"):
        collector.collect(step=3)


def test_fewer_than_two_snapshots_make_no_posterior(base_folder):
    # Red for: a posterior without spread, or a division by zero.
    _, collector, _ = collected(base_folder, steps=1)
    with pytest.raises(TooFewCollectionsError, match=r"at least 2 collections, this run made 1"):
        collector.posterior()


@pytest.mark.parametrize("steps", [2, 3, 4, 7])
def test_the_end_of_a_collection_gives_the_provisional_posterior_in_the_memory_of_the_statistics(base_folder, steps):
    # Red for: rows of the ring in another order, a sum in another order, a second copy of the statistics.
    model, collector, _ = collected(base_folder, steps=steps)
    expected, ring = collector.posterior().gaussian, collector.moments.next_row.untyped_storage().data_ptr()
    final = collector.finish(into_model=False)
    for part in ("mean", "variance", "deviations"):
        assert torch.equal(getattr(final.gaussian, part), getattr(expected, part)), part
    is_handed_over = final.gaussian.deviations.untyped_storage().data_ptr() == ring
    assert is_handed_over == (steps >= 3)  # a ring that is not full is copied, which is less than to keep it
    again = collector.finish()
    assert again.gaussian is final.gaussian and collector.posterior().gaussian is final.gaussian
    assert torch.equal(collector.layout.flatten(collector.weights.read()), expected.mean)


def test_nothing_is_collected_or_saved_after_the_end_of_a_collection(base_folder, tmp_path):
    # Red for: empty moments written into a checkpoint, or a vector folded into the posterior that was returned.
    _, collector, _ = collected(base_folder, steps=4)
    posterior = collector.finish()
    before = posterior.gaussian.deviations.clone()
    for use in (lambda: collector.collect(step=5), lambda: collector.save(tmp_path / "moments.safetensors")):
        with pytest.raises(SwagError, match=r"finish\(\) has ended this collection.*new SwagCollector"):
            use()
    assert torch.equal(posterior.gaussian.deviations, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [1, 5])
def test_a_collector_that_was_stored_goes_on_bit_for_bit(base_folder, tmp_path, stop):
    # Red for: a count, a skip or a fingerprint that is forgotten.
    model, whole, _ = collected(base_folder, steps=0)
    generator, part = torch.Generator().manual_seed(0), SwagCollector(model, rank=3)
    for step in range(1, 9):
        wander(model, generator)
        whole.collect(step=step)
        part.collect(step=step)
        if step == stop:
            digest = part.save(tmp_path / "moments.safetensors")
            part = SwagCollector(model, rank=3)
            part.restore(tmp_path / "moments.safetensors", digest=digest)
            assert not part.collect(step=step + 1)  # the weights have not moved since
    for name, tensor in whole.moments.tensors().items():
        assert torch.equal(part.moments.tensors()[name], tensor), name
    assert part.snapshots == whole.snapshots


def test_moments_of_another_digest_rank_or_adapter_are_refused(base_folder, tmp_path):
    # Red for: a step number, or nothing, compared instead.
    _, collector, _ = collected(base_folder, steps=2)
    path = tmp_path / "moments.safetensors"
    digest = collector.save(path)
    with pytest.raises(PosteriorFormatError, match="digest"):
        SwagCollector(lora_model(base_folder), rank=3).restore(path, digest="0" * 64)
    with pytest.raises(AdapterMismatchError, match=r"rank=3.*rank=4"):
        SwagCollector(lora_model(base_folder), rank=4).restore(path, digest=digest)
    with pytest.raises(AdapterMismatchError, match=r"\[4, 32\].*\[8, 32\]"):
        SwagCollector(lora_model(base_folder, r=8), rank=3).restore(path, digest=digest)


def test_a_file_of_ours_that_holds_no_moments_is_refused(base_folder, tmp_path):
    # Red for: a KeyError out of a file that is whole and has the right digest.
    from swag_trainer.posterior.storage import write_file

    collector = SwagCollector(lora_model(base_folder), rank=3)
    digest = write_file(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"keys": 3})
    with pytest.raises(PosteriorFormatError, match="not hold the moments"):
        collector.restore(tmp_path / "other.safetensors", digest=digest)


def test_a_model_without_peft_and_one_that_does_not_train_are_refused(base_folder):
    # Red for: a posterior over nothing.
    with pytest.raises(SwagError, match=r"A PEFT model is needed, got Linear.*get_peft_model"):
        SwagCollector(torch.nn.Linear(2, 2))
    frozen = lora_model(base_folder)
    frozen.requires_grad_(False)
    with pytest.raises(SwagError, match="Nothing in the model trains"):
        SwagCollector(frozen)


def test_a_weight_that_trains_but_is_never_saved_is_refused_by_name(base_folder):
    # Red for: a pooler that trains and is lost when the adapter is saved.
    model = lora_model(base_folder)
    model.get_base_model().bert.pooler.requires_grad_(True)
    with pytest.raises(SwagError, match=r"2 weights train.*bert\.pooler\.dense\.bias.*modules_to_save"):
        SwagCollector(model)
