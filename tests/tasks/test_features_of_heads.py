"""Features of classification heads: the input of their last layer, whatever the architecture."""

import pytest
import torch
from architectures import ARCHITECTURES, ragged, tiny

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.tasks import task_named
from swag_trainer.tasks.features import MeanFeatures

ALL = {"target_modules": "all-linear"}  # the head is a trained copy then too


def posterior_of(model):
    weights = AdapterWeights(model)
    return PointPosterior(weights.layout, weights.layout.flatten(weights.read()), PosteriorRecord(), weights.saved())


@pytest.mark.parametrize(("name", "lora"), [(name, {}) for name in sorted(ARCHITECTURES)] + [("bert", ALL), ("qwen2", ALL)])
def test_the_last_layer_makes_the_logits_of_the_features(name, lora):
    # Red for: the input of the first layer of a head, of LoRA's second matrix, of a head's frozen original, of the last position of a
    # padded text, an activation behind the features.
    model, batch = tiny(name, **lora), ragged(pad=0)
    features = MeanFeatures(model, posterior_of(model), task=task_named(None))(batch)
    with torch.no_grad():
        logits = model(**batch)["logits"]
        named = dict(model.get_base_model().named_modules())
        last = next(
            module
            for end in ("out_proj", "score", "classifier", "logits_proj")
            for path, module in reversed(named.items())
            if path.split(".")[-1] == end and hasattr(module, "forward") and not path.startswith("bert.encoder")
        )
        torch.testing.assert_close(last(features.to(logits)), logits, rtol=1e-5, atol=1e-6)
