import json
from dataclasses import asdict, replace

import pytest

from swag_trainer.errors import PosteriorFormatError, SwagError
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.storage import read_file, write_file
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.posterior.tuning import CalibratedThreshold, Candidate, ConformalQuantile, Tuning

TUNING = Tuning(
    temperature=1.25,
    dataset="me/questions",
    split="validation",
    num_examples=60,
    num_calibration=61,
    num_samples=10,
    seed=0,
    nll=0.5,
    center="tail",
    dropout=True,
    design="iid",
    num_folds=5,
    relative_energy=0.03,
    candidates=[Candidate("mean", 0.5, False, 1.1, 0.52), Candidate("tail", 2, True, 1.3, 0.49)],
    baselines={"SWA": 0.6, "MAP, temperature": 0.55},
    thresholds=[
        CalibratedThreshold("risk", 0.05, 0.7, 0.8, 0.02, level=0.9),
        CalibratedThreshold("risk", 0.01, None, 0.0, None, level=0.9),
        CalibratedThreshold("coverage", 0.9, 0.55, 0.91, 0.04),
    ],
    conformal=[ConformalQuantile("aps", 0.9, 0.97, 1.4), ConformalQuantile("raps", 0.99, None, 3, 0.01, 5)],
)


def test_a_tuning_record_is_read_back_as_it_was_written():
    # Red for: records inside the record left as dictionaries, or lost.
    metadata = PosteriorRecord(scale=2.0, tuning=TUNING)
    document = json.loads(json.dumps(metadata.as_document(), allow_nan=False))
    assert PosteriorRecord.from_document(document, where="'file'") == metadata
    assert PosteriorRecord.from_document({}, where="'file'").tuning is None


def test_a_tuning_of_an_earlier_version_is_read_with_its_scales_as_candidates_around_the_mean():
    # Red for: a file of an earlier version refused, or its draws moved to another centre or dropped out.
    earlier = ("temperature", "dataset", "num_examples", "num_calibration", "num_samples", "seed", "nll", "baselines")
    document = {name: value for name, value in asdict(TUNING).items() if name in earlier}
    document["scale_nll"] = [[0.5, 1.1, 0.52], [2, 1.25, 0.49]]
    tuning = PosteriorRecord.from_document({"tuning": document}, where="'file'").tuning
    assert tuning.candidates == [Candidate("mean", 0.5, False, 1.1, 0.52), Candidate("mean", 2, False, 1.25, 0.49)]
    assert (tuning.center, tuning.dropout, tuning.design, tuning.num_folds, tuning.relative_energy) == (
        "mean",
        False,
        "matched",
        0,
        None,
    )
    assert (tuning.temperature, tuning.num_calibration, tuning.baselines) == (1.25, 61, TUNING.baselines)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "1.0"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"nll": float("nan")}, "not finite"),
        ({"num_examples": 0}, "num_examples"),
        ({"num_samples": 2.5}, "num_samples"),
        ({"seed": 2**64}, "seed"),
        ({"dataset": "x" * 201}, "at most 200"),
        ({"dataset": "a\nb"}, "printable"),
        ({"baselines": {"a\x1b[31m": 1.0}}, "printable"),
        ({"baselines": {"SWA": float("inf")}}, "not finite"),
        ({"scale_nll": [[1.0, 2.0]]}, "scale_nll"),
        ({"scale_nll": [[1.0, 1.0, "0.5"]]}, "nll='0.5'"),
        ({"scale_nll": [[1.0, 1.0, 0.5]] * 1001}, "more than 1000"),
        ({"center": "middle"}, "center"),
        ({"center": None}, "center"),
        ({"dropout": 1}, "dropout"),
        ({"design": "antithetic"}, "design"),
        ({"num_folds": -1}, "num_folds"),
        ({"relative_energy": float("inf")}, "relative_energy"),
        ({"candidates": [asdict(TUNING.candidates[0]) | {"center": "middle"}]}, "center"),
        ({"candidates": [asdict(TUNING.candidates[0]) | {"scale": -1.0}]}, "scale"),
        ({"candidates": [asdict(TUNING.candidates[0]) | {"temperature": 0.0}]}, "temperature"),
        ({"candidates": [asdict(TUNING.candidates[0])] * 1001}, "more than 1000"),
        ({"thresholds": [{"goal": "risk"}]}, "should state"),
        ({"thresholds": {"risk": 0.5}}, "thresholds"),
        ({"thresholds": [asdict(TUNING.thresholds[0]) | {"threshold": 1.5}]}, "threshold"),
        ({"thresholds": [asdict(TUNING.thresholds[0]) | {"goal": "luck"}]}, "goal"),
        ({"thresholds": [asdict(TUNING.thresholds[0]) | {"colour": 1}]}, "colour"),
        ({"thresholds": [None]}, "thresholds"),
        ({"conformal": [asdict(TUNING.conformal[0]) | {"quantile": float("nan")}]}, "quantile"),
        ({"conformal": [asdict(TUNING.conformal[0]) | {"method": "best"}]}, "method"),
        ({"conformal": [asdict(TUNING.conformal[0]) | {"regularised_rank": 1.5}]}, "regularised_rank"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_tuning_record_that_cannot_be_is_refused_and_says_why(change, said):
    # Red for: untrusted input taken as it comes: a nested value of another type, of an absurd size, or that divides by zero.
    document = {"tuning": asdict(TUNING) | change}
    with pytest.raises(PosteriorFormatError, match=rf"'file'.*{said}"):
        PosteriorRecord.from_document(document, where="'file'")


def test_a_posterior_with_another_scale_is_not_tuned(trained):
    # Red for: the temperature and the thresholds of one scale used at another.
    _, swag = trained
    posterior = swag.posterior
    assert posterior.tuning is None and posterior.temperature == 1.0
    tuned = replace(posterior, record=replace(posterior.record, scale=2.0, tuning=TUNING))
    assert tuned.tuning == TUNING and tuned.temperature == 1.25
    assert tuned.with_scale(4.0).tuning is None and tuned.with_scale(4.0).temperature == 1.0


def test_the_record_travels_in_the_posteriors_file(trained, tmp_path):
    # Red for: a record that is not written, or a file whose digest does not cover it.
    _, swag = trained
    tuned = replace(swag.posterior, record=replace(swag.posterior.record, scale=2.0, tuning=TUNING))
    tuned.save_pretrained(tmp_path)
    assert SwagPosterior.from_pretrained(tmp_path).tuning == TUNING
    path = tmp_path / "swag_posterior.safetensors"
    data = path.read_bytes()
    assert data.count(b'\\"temperature\\": 1.25') == 1
    path.write_bytes(data.replace(b'\\"temperature\\": 1.25', b'\\"temperature\\": 1.26'))
    with pytest.raises(SwagError, match="changed or damaged"):
        SwagPosterior.from_pretrained(tmp_path)


def test_a_file_from_before_there_was_tuning_still_loads(trained, tmp_path):
    # Red for: a fact that old files need to have.
    _, swag = trained
    swag.posterior.save_pretrained(tmp_path)
    path = tmp_path / "swag_posterior.safetensors"
    tensors, document, _ = read_file(path)
    assert document["record"].pop("tuning") is None
    write_file(path, tensors, document)
    assert SwagPosterior.from_pretrained(tmp_path).temperature == 1.0
