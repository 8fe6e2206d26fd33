"""Whether two posteriors are of the same adapter on the same base, so that one forward can answer for both."""

from __future__ import annotations

import torch

from swag_trainer.errors import AdapterMismatchError, shortened
from swag_trainer.posterior.base import WeightPosterior

# Of a posterior's record, what all members of a mixture must have in common.
_COMMON = ("base_model", "gguf_file", "task", "task_settings", "labels", "problem_type", "initialisation", "base_fingerprint")


def check_alike(first: WeightPosterior, other: WeightPosterior, number: int) -> None:
    """Do nothing if one forward over one base can answer for both.

    Raises:
        AdapterMismatchError: They differ in something that it needs.
    """
    difference = first.layout.difference(other.layout, ours="Member 0", theirs=f"Member {number}")
    if difference:
        raise AdapterMismatchError(f"The members of a mixture must be posteriors of the same weights. {difference}")
    for name in _COMMON:
        ours, theirs = getattr(first.record, name), getattr(other.record, name)
        if name == "base_model":
            ours, theirs = first.adapter.base_model, other.adapter.base_model
        if ours != theirs:
            raise AdapterMismatchError(
                f"The members of a mixture must have the same {name}: member 0 has {shortened(repr(ours))}, member {number} has "
                f"{shortened(repr(theirs))}."
            )
    ours, theirs = (posterior.adapter.settings for posterior in (first, other))
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise AdapterMismatchError(
            f"The members of a mixture must have the same adapter settings: {differing[0]} is {shortened(repr(ours.get(differing[0])))} for "
            f"member 0 and {shortened(repr(theirs.get(differing[0])))} for member {number}."
        )
    for key in sorted((first.adapter.tensors.keys() | other.adapter.tensors.keys()) - set(first.layout.keys)):
        pair = first.adapter.tensors.get(key), other.adapter.tensors.get(key)
        if pair[0] is None or pair[1] is None or not torch.equal(*pair):
            raise AdapterMismatchError(
                f"The adapters of member 0 and member {number} differ in {key!r}, which was not trained and so is not drawn. Train the members "
                "with the same seed for what stays fixed, or train these weights too."
            )
