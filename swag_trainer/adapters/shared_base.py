"""Changes of a base model that a private copy shares: merged adapters and weights that were written to."""

from __future__ import annotations

from torch import nn

from swag_trainer.adapters.peft_layers import adapter_layers, is_merged
from swag_trainer.errors import SwagError


class SharedBase:
    """What a private copy shares with the user's model, and whether it is still what it was.

    Merging adds the adapter into the base weights, also into the copy's, whose draws would then be added to it. Other changes of the user's
    model (another active adapter, a deleted or disabled one, `unload`) do not reach the copy. A check costs a few microseconds per layer.

    Args:
        model: The user's model.
        copied: The private copy.
    """

    def __init__(self, model: nn.Module, copied: nn.Module) -> None:
        shared = {id(parameter) for parameter in copied.parameters()}
        self._layers = list(adapter_layers(model))
        # PEFT's layers for `target_parameters` write to theirs, and back, in every forward of their own.
        shared -= {id(layer.get_param()) for _, layer in self._layers if hasattr(layer, "get_param")}
        # A tensor made in inference mode does not count how often it is written to.
        self._versions = [
            (name, parameter, parameter._version)
            for name, parameter in model.named_parameters()
            if id(parameter) in shared and not parameter.requires_grad and not parameter.is_inference()
        ]

    def check(self) -> None:
        """Check that the shared weights are those that the copy was made with.

        Raises:
            SwagError: An adapter was merged into them, or one was written to.
        """
        for name, layer in self._layers:
            if is_merged(layer):
                raise SwagError(
                    f"The model's adapter was merged into the base (at {name!r}) after its predictor was made. The two share the base's "
                    "weights, so the draws would be added to the merged adapter. Call model.unmerge_adapter(), or load the model again "
                    "and make another predictor or pipeline."
                )
        for name, parameter, version in self._versions:
            if parameter._version != version:
                raise SwagError(
                    f"The base weight {name!r} was written to after the predictor was made, which shares it; the posterior is of the base "
                    "as it was. Load the model again and make another predictor or pipeline."
                )
