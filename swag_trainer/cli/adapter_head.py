"""How many classes the head of a saved adapter has, and how its base model's configuration names its own."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from swag_trainer.posterior.saved_adapter import SavedAdapter


def classes_of_head(adapter: SavedAdapter, base_model: str) -> tuple[int, list[str]]:
    """Return the number of classes in an adapter's file, and the names of the classes in the configuration of its base model.

    The head is recognised by its name: that of a linear layer which in the base model has one output for each of the base's classes.
    An adapter without a head has the classes of its base model.

    Args:
        adapter: Of a classifier of texts.
        base_model: Folder or Hub name of its base model.

    Raises:
        OSError: There is no such base model, or it cannot be reached.
        ValueError: It is none of transformers.
    """
    config = AutoConfig.from_pretrained(base_model, trust_remote_code=False)
    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    keys = [
        f"base_model.model.{name}.weight"
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == config.num_labels
    ]
    sizes = [adapter.tensors[key].shape[0] for key in keys if key in adapter.tensors]
    own = [str(config.id2label[index]) for index in range(config.num_labels)]
    return (sizes[-1] if sizes else len(own)), own
