"""Properties of layouts, moments, files and records that hold for every input; hypothesis looks for one for which they do not."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import safetensors.torch
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracles import two_pass_moments

from swag_trainer.posterior.documents import read_dataclass
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.moments import RunningMoments
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.storage import content_digest, encode, read_file
from swag_trainer.posterior.tensor_file import file_content, read_tensors
from swag_trainer.posterior.tuning import CalibratedThreshold, Candidate, ConformalQuantile, Tuning, upgraded

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
    lambda name: name.isprintable() and ".." not in name
)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool])
fractions = st.floats(0, 1)
numbers = st.floats(-1e9, 1e9)
positive = st.floats(1e-3, 1e3)


@st.composite
def tensor_dicts(draw, dtypes=dtypes):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return {
        name: (10 * torch.randn(draw(shapes), generator=generator)).to(draw(dtypes))
        for name in draw(st.lists(names, min_size=1, max_size=5, unique=True))
    }


@quick
@given(tensor_dicts(st.just(torch.float32)))
def test_weights_come_back_from_a_flat_vector_whatever_their_names_and_shapes(weights):
    # Red for: an order of the mapping in the place of that of the names, a scalar or an empty weight that takes the place of another.
    layout = WeightLayout.of(weights)
    vector = layout.flatten(dict(reversed(weights.items())))
    assert layout == WeightLayout.of(dict(reversed(weights.items()))) and vector.shape == (layout.size,)
    back = layout.unflatten(torch.stack([vector, -vector]))
    assert set(back) == set(weights)
    for name, weight in weights.items():
        assert torch.equal(back[name][0], weight) and torch.equal(back[name][1], -weight)
    assert layout.difference(layout, ours="A", theirs="B") is None
    other = WeightLayout.of({**weights, "another name": torch.zeros(2)})
    assert "another name" in layout.difference(other, ours="A", theirs="B")


@quick
@given(
    st.integers(2, 12),
    st.integers(1, 6),
    st.sampled_from([0, 2, 3, 20]),
    st.floats(-100, 100),
    st.floats(1e-4, 10),
    st.integers(0, 99),
)
def test_running_moments_are_those_of_two_passes(count, size, rank, centre, spread, seed):
    # Red for: a ring that loses or repeats a row, a variance that cancels far from zero, K - 1 taken where K is meant.
    generator = torch.Generator().manual_seed(seed)
    vectors = centre + spread * torch.randn(count, size, generator=generator)
    moments = RunningMoments(size, rank)
    for vector in vectors:
        moments.fold(vector)
    assume(moments.count == count)  # a vector that is the one before, but for rounding, is not counted again
    mean, variance, deviations = two_pass_moments(vectors)
    resolution = abs(centre) * 2**-23  # of the vectors themselves
    torch.testing.assert_close(moments.mean.double(), mean, rtol=1e-6, atol=1e-6 * spread + resolution)
    torch.testing.assert_close(moments.variance.double(), variance, rtol=1e-4, atol=(1e-3 * spread + resolution) ** 2)
    kept = deviations[max(0, count - rank) :]
    assert moments.deviations.shape == kept.shape
    torch.testing.assert_close(moments.deviations.double(), kept, rtol=1e-4, atol=1e-5 * spread + 4 * resolution)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=8,
)


@quick
@given(tensor_dicts(), st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=4))
def test_every_file_that_can_be_written_is_read_as_it_was_written(tmp_path, tensors, document):
    # Red for: an empty tensor, a scalar, a dtype or a text that does not come back, or a file that safetensors itself cannot open.
    content, digest = encode(tensors, document)
    data = b"".join(map(bytes, content))
    (tmp_path / "file").write_bytes(data)
    found, back, same = read_file(tmp_path / "file")
    assert (back, same, digest) == (document, digest, content_digest(found, back))
    theirs = safetensors.torch.load(data)
    assert set(found) == set(theirs) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == theirs[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor) and torch.equal(theirs[name], tensor)


@quick
@given(tensor_dicts(), st.data())
def test_no_cut_of_a_file_is_read(tmp_path, tensors, data):
    # Red for: a file that is read although its end is missing.
    whole = b"".join(map(bytes, file_content(tensors, {"format": "pt"})))
    (tmp_path / "file").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        read_tensors(tmp_path / "file")
    except Exception as error:
        assert type(error).__name__ == "PosteriorFormatError"
    else:
        raise AssertionError("it was read")


@st.composite
def tunings(draw):
    optional = st.none() | fractions
    return Tuning(
        temperature=draw(positive),
        dataset=draw(names),
        num_examples=draw(st.integers(1, 10**6)),
        num_calibration=draw(st.integers(0, 10**6)),
        num_samples=draw(st.integers(1, 1000)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        nll=draw(numbers),
        split=draw(st.none() | names),
        center=draw(st.sampled_from(["mean", "tail", "last"])),
        dropout=draw(st.booleans()),
        design=draw(st.sampled_from(["matched", "iid"])),
        relative_energy=draw(st.none() | positive),
        candidates=draw(
            st.lists(st.builds(Candidate, st.just("mean"), positive, st.booleans(), positive, numbers), max_size=3)
        ),
        baselines=draw(st.dictionaries(names, numbers, max_size=3)),
        thresholds=draw(
            st.lists(
                st.builds(
                    CalibratedThreshold,
                    st.sampled_from(["risk", "coverage"]),
                    fractions,
                    optional,
                    fractions,
                    optional,
                    optional,
                ),
                max_size=3,
            )
        ),
        conformal=draw(
            st.lists(
                st.builds(ConformalQuantile, st.sampled_from(["lac", "raps"]), fractions, st.none() | positive, positive),
                max_size=3,
            )
        ),
    )


@quick
@given(tunings(), st.floats(0, 1e6), st.none() | st.lists(names, max_size=4))
def test_every_tuning_comes_back_from_the_record_of_a_file(tuning, scale, labels):
    # Red for: a field that is written and not read, a number that JSON rounds, an older form taken for a newer one.
    record = PosteriorRecord(scale=scale, tuning=tuning, labels=labels)
    document = json.loads(json.dumps(record.as_document()))
    assert PosteriorRecord.from_document(document, where="it") == record
    again = upgraded(json.loads(json.dumps(asdict(tuning))))
    assert read_dataclass(Tuning, again, where="it") == tuning and upgraded(again) == again


@quick
@given(
    tunings(),
    st.sampled_from(["temperature", "num_examples", "nll", "seed"]),
    st.sampled_from([math.nan, math.inf, -1e300, "1", None, []]),
)
def test_no_tuning_with_a_number_that_cannot_be_is_read(tuning, name, value):
    # Red for: a check of one field that another one lacks.
    if (name, value) == ("nll", -1e300):
        value = math.inf
    document = asdict(PosteriorRecord(tuning=tuning)) | {"tuning": asdict(tuning) | {name: value}}
    document.pop("features")
    try:
        PosteriorRecord.from_document(document, where="it")
    except Exception as error:
        assert type(error).__name__ == "PosteriorFormatError"
    else:
        raise AssertionError(f"{name}={value!r} was read")
