"""Point estimates for models without a posterior: plain adapters, and classifiers without an adapter."""

from __future__ import annotations

import copy

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from swag_trainer.adapters.keys import active_adapter, adapted_model, parameter_names
from swag_trainer.adapters.peft_layers import is_adapted
from swag_trainer.adapters.quantised import shared_tensors
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.model_metadata import task_metadata
from swag_trainer.errors import SwagError
from swag_trainer.posterior.point import PointPosterior
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter


def point_estimate(model: nn.Module) -> tuple[nn.Module, PointPosterior]:
    """Return a PEFT model that computes what a model does, and the point estimate at its adapter's weights.

    Predictors, and the masks of MC dropout, need an adapter. A model without one gets an adapter that adds exactly 0; it is put into a
    copy that shares all of the model's tensors, and the model stays as it is.

    Args:
        model: With an adapter or without.

    Raises:
        SwagError: A model without an adapter and without a linear layer, or several active adapters.
    """
    adapted = adapted_model(model) if any(map(is_adapted, model.modules())) else _with_neutral_adapter(model)
    name = active_adapter(adapted)
    weights = AdapterWeights(adapted, name, keys=parameter_names(adapted, name))
    record = PosteriorRecord(scale=0.0, **task_metadata(weights, problem_type=None))
    read = weights.read()
    point = PointPosterior(
        weights.layout, weights.layout.flatten(read).float(), record, SavedAdapter(adapted.peft_config[name].to_dict(), read)
    )
    return adapted, point


def _with_neutral_adapter(model: nn.Module) -> PeftModel:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    num_labels = getattr(getattr(model, "config", None), "num_labels", None)
    heads = [name for name, module in linear.items() if module.out_features == num_labels]
    if not linear:
        raise SwagError(f"{type(model).__name__} has no linear layer, and no adapter: its dropout cannot be followed.")
    copied = copy.deepcopy(model, shared_tensors(model, set()))
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        # LoRA begins with B = 0.
        return get_peft_model(copied, LoraConfig(r=1, target_modules=[(heads or list(linear))[-1]])).eval()
    finally:
        for parameter, flag in trains:  # PEFT freezes the parameters, which the copy shares
            parameter.requires_grad_(flag)
