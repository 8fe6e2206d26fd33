"""The config of a base model, read to calculate with it or to ask what the model is for, without its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from swag_trainer.errors import SwagError, shortened

# What transformers makes Python objects of, one by one: other sizes are those of tensors, which are not made.
_COUNTED = re.compile(r"(layers?|depths?|num_labels)$")
_MOST_LAYERS, _MOST_LABELS = 2_000, 1_000_000


def load_base_config(name: str, *, revision: str | None, **options: Any) -> PretrainedConfig:
    """Load a config whose numbers of layers and labels do not keep the process busy for ever.

    Args:
        name: Folder or Hub name of the base model.
        revision: Its commit.
        options: Of `AutoConfig.from_pretrained`.

    Raises:
        SwagError: A number is larger than that of any model.
    """
    if "gguf_file" not in options:
        stated, _ = PretrainedConfig.get_config_dict(name, revision=revision, **dict(options))
        for setting, number in _counts(stated):
            most = _MOST_LABELS if setting == "num_labels" else _MOST_LAYERS
            if number > most:
                raise SwagError(
                    f"config.json of the base model {name!r} states {setting}={shortened(str(number))}; more than {most:,} are not read."
                )
    return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False, **options)


def _counts(value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers of layers and labels in a JSON value, with their names."""
    for name, item in value.items() if isinstance(value, Mapping) else ():
        if isinstance(item, Mapping):
            yield from _counts(item)
        elif _COUNTED.search(name):
            yield from ((name, each) for each in (item if isinstance(item, list) else [item]) if isinstance(each, (int, float)))
