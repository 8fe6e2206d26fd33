"""A new family of posteriors is one class: here a mixture of two weight vectors, the first of which counts three times as much."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from lively import short_run
from transformers import pipeline

from swag_trainer import MonteCarloPredictor, PosteriorFormatError, WeightPosterior, load_posterior
from swag_trainer.posterior.base import Draws
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.packing import pack_vector, unpack_vector
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter

WEIGHTS = torch.tensor([0.75, 0.25], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class TwoPoints(WeightPosterior):
    kind: ClassVar[str] = "test-two-points"

    layout: WeightLayout
    vectors: torch.Tensor
    record: PosteriorRecord
    adapter: SavedAdapter

    def mean_vector(self):
        return (WEIGHTS.float() @ self.vectors).float()

    def draw(self, num_samples, *, seed, scale=None, design="matched"):
        return Draws(self.vectors, WEIGHTS)

    def tensors(self):
        first, second = (pack_vector(part, self.layout, vector) for part, vector in zip("ab", self.vectors, strict=True))
        return first | second

    @classmethod
    def from_tensors(cls, tensors, record, adapter, metadata, *, where):
        parts = [{name: tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")} for part in "ab"]
        (layout, first), (other, second) = (
            unpack_vector(part, own, where=where) for part, own in zip("ab", parts, strict=True)
        )
        if layout != other or metadata:
            raise PosteriorFormatError(f"{where} does not hold two weight vectors of one layout.")
        return cls(layout, torch.stack([first, second]), record, adapter)


def test_a_family_is_saved_pushed_loaded_and_predicted_with(base_folder, texts, tmp_path, hub):
    # Red for: a loader that knows SWAG alone, a pipeline or a predictor that asks for more than the interface, weights that are dropped.
    model, swag, tokenizer = short_run(base_folder, texts, tmp_path / "run")
    vectors = swag.draw(2, seed=0, design="iid").vectors
    posterior = TwoPoints(swag.layout, vectors, swag.record, swag.adapter)
    posterior.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    posterior.push_to_hub("user/two-points")
    for where in (tmp_path / "saved", "user/two-points"):
        loaded = load_posterior(where)
        assert type(loaded) is TwoPoints and torch.equal(loaded.vectors, vectors) and loaded.digest == posterior.digest

    rows = [dict(tokenizer(text)) for text in texts[:5]]
    predicted = MonteCarloPredictor(model, posterior, progress=False).predict(rows, return_draws=True)
    expected = np.average(predicted.draw_probabilities, axis=0, weights=WEIGHTS)
    np.testing.assert_allclose(predicted.probabilities, expected, rtol=1e-12)
    assert np.abs(np.diff(predicted.draw_probabilities, axis=0)).max() > 1e-3
    served = pipeline("swag-text-classification", model=str(tmp_path / "saved"), device="cpu")(texts[:5], top_k=None)
    np.testing.assert_allclose([[row["score"] for row in ranks] for ranks in served], np.sort(expected)[:, ::-1], atol=1e-5)
