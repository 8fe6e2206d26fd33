import json

import pytest
import torch
from test_swag import a_posterior, rewrite

from swag_trainer import PosteriorFormatError, SwagPosterior, load_posterior
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.point import PointPosterior


def _unknown(tensors, document):
    document["kind"] = "kronecker\x1b[31m" + "x" * 1000


def _not_text(tensors, document):
    document["kind"] = ["swag"]


def _null(tensors, document):
    document["kind"] = None


def _extra_key(tensors, document):
    document["code"] = "import os"


def _no_record(tensors, document):
    del document["record"]


def _record_of_another_type(tensors, document):
    document["record"] = []


def _metadata_of_another_type(tensors, document):
    document["metadata"] = "none"


def _another_kind(tensors, document):
    document["kind"] = "point"


@pytest.mark.parametrize(
    "change",
    [
        _unknown,
        _not_text,
        _null,
        _extra_key,
        _no_record,
        _record_of_another_type,
        _metadata_of_another_type,
        _another_kind,
    ],
)
def test_a_file_of_a_kind_that_cannot_be_is_refused_with_the_files_name(tmp_path, change):
    # Red for: a kind looked up without looking at its type, keys that are ignored, an escape code or a page of text in the message.
    a_posterior().save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(PosteriorFormatError, match=POSTERIOR_FILE) as caught:
        load_posterior(tmp_path)
    assert len(str(caught.value)) < 900 and "\x1b" not in str(caught.value)


def test_a_class_refuses_the_file_of_another_kind_and_names_the_function_that_reads_all(tmp_path):
    # Red for: SwagPosterior.from_pretrained returning a point.
    PointPosterior.at(a_posterior().mean_vector(), a_posterior()).save_pretrained(tmp_path)
    with pytest.raises(PosteriorFormatError, match=rf"{POSTERIOR_FILE}.*'point'.*load_posterior"):
        SwagPosterior.from_pretrained(tmp_path)


def test_a_point_is_saved_and_loaded_and_every_draw_is_its_weights(tmp_path):
    # Red for: a vector flattened in another order, a scale of 1, a tuning taken over from the posterior it was made of.
    posterior = a_posterior(scale=2.0)
    point = PointPosterior.at(posterior.last_snapshot(), posterior)
    point.save_pretrained(tmp_path)
    loaded = load_posterior(tmp_path)
    assert (type(loaded), loaded.scale, loaded.tuning) == (PointPosterior, 0.0, None)
    assert torch.equal(loaded.mean_vector(), posterior.last_snapshot())
    draws = loaded.draw(3, seed=1, scale=5.0)
    assert torch.equal(draws.vectors, posterior.last_snapshot().expand(3, -1)) and draws.weights is None
    assert json.loads(json.dumps(loaded.metadata())) == {}


def _with_metadata(tensors, document):
    document["metadata"] = {"count": 3}


def _half_precision(tensors, document):
    for name in tensors:
        tensors[name] = tensors[name].half()


def _no_tensors(tensors, document):
    tensors.clear()


@pytest.mark.parametrize("change", [_with_metadata, _half_precision, _no_tensors])
def test_a_point_with_what_no_point_has_is_refused_with_the_files_name(tmp_path, change):
    # Red for: PointPosterior.from_tensors trusting its file.
    PointPosterior.at(a_posterior().mean_vector(), a_posterior()).save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(PosteriorFormatError, match=POSTERIOR_FILE):
        load_posterior(tmp_path)
