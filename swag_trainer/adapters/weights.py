"""Reading and writing an adapter's weights in a model, and private copies of a model for predictions."""

from __future__ import annotations

import copy
import operator
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from swag_trainer.adapters.base_checkpoint import save_embedding_layers
from swag_trainer.adapters.coefficients import plain_weights, without_coefficients
from swag_trainer.adapters.keys import active_adapter, adapted_model, file_entries, own_tensors, parameter_names
from swag_trainer.adapters.peft_layers import adapter_layers, is_disabled, is_merged
from swag_trainer.adapters.precision import upcast_to_float32
from swag_trainer.adapters.quantised import shared_tensors
from swag_trainer.adapters.rank_allocation import every_rank
from swag_trainer.adapters.settings import without_patterns
from swag_trainer.adapters.sharded import WholeReader, reader_for, refuse_flattened
from swag_trainer.adapters.supported import refuse_unsupported
from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.posterior.adapter_settings import ADAPTER_CONFIG, read_adapter_config
from swag_trainer.posterior.coefficient_map import weight_key
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.saved_adapter import SavedAdapter


class AdapterWeights:
    """The trained weights of one adapter in one model: LoRA matrices, the head in ``modules_to_save``, whatever else it trains.

    Args:
        model: A PEFT model, possibly wrapped.
        adapter_name: Which adapter; the active one by default.
        keys: Which weights. By default those that train, which must all be in the adapter's file.

    Attributes:
        model: The PEFT model without wrappers.
        adapter_name: The adapter.
        layout: Keys and shapes of the weights.

    Raises:
        SwagError: No PEFT model, or an adapter of a kind that is not supported; nothing to train; a weight that trains but would never be saved, or is kept in a way that cannot be
            read.
        AdapterMismatchError: The adapter lacks one of ``keys``.
    """

    def __init__(self, model: nn.Module, adapter_name: str | None = None, *, keys: Iterable[str] | None = None) -> None:
        refuse_flattened(model)
        self.model = adapted_model(model)
        self.adapter_name = adapter_name or active_adapter(self.model)
        for config in self.model.peft_config.values():  # the active one of X-LoRA's is a LoRA that it mixes
            refuse_unsupported(config)
        names = parameter_names(self.model, self.adapter_name)
        keys = _trained_keys(model, self.model, names, self.adapter_name) if keys is None else list(keys)
        missing = sorted(set(keys) - set(names))
        if missing:
            raise AdapterMismatchError(
                f"The posterior has {len(keys)} weights, the adapter {self.adapter_name!r} of the model {len(names)}. "
                f"The first the adapter lacks is {missing[0]!r}."
            )
        self._parameters = {key: self.model.get_parameter(names[key]) for key in sorted(keys)}
        self._paths = {key: _path_to(self.model, names[key]) for key in self._parameters}
        # Every step once: most paths share their beginning, and this is checked in every collection.
        steps = {(id(members), name): (members, name, child) for path in self._paths.values() for members, name, child in path}
        self._members, self._names, self._children = zip(*steps.values(), strict=True)
        self._reader = reader_for(self.parameters(), model)
        self.layout = WeightLayout(
            tuple(self._parameters), tuple(self._reader.shape(parameter) for parameter in self._parameters.values())
        )

    @property
    def is_sharded(self) -> bool:
        """Is reading a collective, that is, do the processes hold parts or rounded copies of the weights?"""
        return not isinstance(self._reader, WholeReader)

    @property
    def subfolder(self) -> str:
        """Where in a folder that the whole model is saved to no other adapter of it is put: "" or the adapter's name."""
        # PEFT saves the adapter called "default" into the folder itself. Without one by that name the place is free.
        taken = isinstance(self.model, PeftModel) and self.adapter_name != "default" and "default" in self.model.peft_config
        return self.adapter_name if taken else ""

    def read(self) -> dict[str, Tensor]:
        """Return the weights as they are now, not copied where they lie here whole.

        Where they are cut up over processes, every process has to call this.

        Raises:
            AdapterMismatchError: A parameter was replaced or deleted since this object was made.
        """
        whole = self._reader.read(self.parameters())
        self._check_unchanged()  # not before: FSDP2 may have other objects in the modules until it is read
        return {key: weight.detach() for key, weight in zip(self._parameters, whole, strict=True)}

    def copy_into(self, pieces: Sequence[Tensor]) -> None:
        """Copy the weights as they are now into tensors in the order of the layout, cast to their dtypes: a faster `read`."""
        whole = self._reader.read(self.parameters())
        self._check_unchanged()
        with torch.no_grad():
            torch._foreach_copy_(list(pieces), whole)

    def _check_unchanged(self) -> None:
        # map runs in C: the walk would otherwise cost a fifth of a collection.
        if not all(map(operator.is_, map(dict.get, self._members, self._names), self._children)):
            changed = next(
                key for key, path in self._paths.items() if any(members.get(name) is not child for members, name, child in path)
            )
            raise AdapterMismatchError(
                f"The adapter {self.adapter_name!r} was changed while its weights were being collected: {changed!r} is another "
                "parameter now, or gone. Merge, resize or delete adapters after training."
            )

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters themselves, in the order of the layout."""
        return list(self._parameters.values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters themselves by key."""
        return dict(self._parameters)

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Put ``weights`` in place, cast to the parameters' own dtypes and devices.

        Where they are cut up over processes, every process has to call this, with the same weights.
        """
        self._reader.write(self.parameters(), [weights[key] for key in self._parameters])

    def load(self, adapter: SavedAdapter) -> None:
        """Put a saved adapter in place, weights that do not train included. For a `PeftModel` whose weights lie here whole."""
        set_peft_model_state_dict(self.model, dict(adapter.tensors), adapter_name=self.adapter_name)

    @contextmanager
    def replaced_by(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Put ``weights`` in place for the length of a ``with`` block; the old ones come back bit for bit, however it ends.

        For a model that one thread trains. To predict, see `private_copy`.
        """
        old = [weight.detach().clone() for weight in self._reader.stored(self.parameters())]
        self.write(weights)
        try:
            yield
        finally:
            self._reader.write(self.parameters(), old)

    def saved(self) -> SavedAdapter:
        """Return the adapter as ``save_pretrained`` would write it now, weights that do not train included.

        Of coefficients (`train_coefficients`) the weights that they stand for are returned. Where they are cut up over processes, every process has to call this.

        Raises:
            SwagError: The temporary folder, into which PEFT writes it, is full or cannot be written.
        """
        adapter = self._as_peft_saves_it()
        tensors = {key: tensor for key, tensor in adapter.tensors.items() if weight_key(key) is None}
        return replace(adapter, tensors=tensors | plain_weights(self.model, self.adapter_name))

    def _as_peft_saves_it(self) -> SavedAdapter:
        with tempfile.TemporaryDirectory(prefix="swag_trainer-") as folder:
            # A native adapter's model compares PEFT's version with the newest that transformers asks for, when it saves.
            if self.is_sharded or not isinstance(self.model, PeftModel):
                return self._gathered(Path(folder))
            try:
                # Not PEFT's own model.state_dict(), see `own_tensors`.
                tensors = {name: tensor.detach() for name, tensor in own_tensors(self.model).items()}
                with every_rank(self.model, self.adapter_name):
                    self.model.save_pretrained(
                        folder,
                        selected_adapters=[self.adapter_name],
                        state_dict=tensors,
                        save_embedding_layers=save_embedding_layers(self.model, self.adapter_name),
                    )
            except (SafetensorError, OSError) as error:  # the one of safetensors names no path
                raise SwagError(
                    f"PEFT could not write the adapter into the temporary folder {str(folder)!r}: {error}. Free space there, or "
                    "let the environment variable TMPDIR name another place."
                ) from error
            # PEFT writes every adapter but "default" into a folder of its own.
            own_folder = Path(folder) / self.adapter_name
            return self.portable(SavedAdapter.read(own_folder if own_folder.is_dir() else Path(folder)))

    def portable(self, adapter: SavedAdapter) -> SavedAdapter:
        """Return an adapter of this model, as PEFT saved it, with names of modules in the place of patterns, see `without_patterns`."""
        return replace(adapter, config=without_patterns(adapter.config, self.model, self.adapter_name))

    def _gathered(self, folder: Path) -> SavedAdapter:
        """`saved` without the base model, which PEFT would gather too."""
        entries = file_entries(self.model, self.adapter_name)
        keys = [key for key, entry in entries.items() if isinstance(entry, nn.Parameter)]
        whole = dict(zip(keys, self._reader.stored([entries[key] for key in keys]), strict=True))
        tensors = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in {**entries, **whole}.items()}
        with every_rank(self.model, self.adapter_name):
            config = copy.copy(self.model.peft_config[self.adapter_name])
        config.inference_mode = True  # as PEFT writes it
        config.save_pretrained(folder)
        return self.portable(SavedAdapter(read_adapter_config(folder / ADAPTER_CONFIG), tensors))


def private_copy(model: nn.Module, adapter_name: str | None, keys: Iterable[str]) -> AdapterWeights:
    """Copy a model so that the weights ``keys`` may be written, in evaluation mode; every other tensor is shared, not copied.

    The user's model is never written to predict: swapping weights in and out gives wrong predictions under threads and leaves a draw
    in the model when interrupted inside ``finally``.

    Raises:
        SwagError: The adapter is merged into the base or switched off, so its weights would not take part in the prediction.
        AdapterMismatchError: The adapter lacks one of ``keys``.
    """
    original = AdapterWeights(without_coefficients(model, adapter_name), adapter_name, keys=keys)
    if original.is_sharded:
        raise SwagError(
            "The model's weights are cut up over processes, and a private copy would hold parts of them only. Predict with a model "
            "that is loaded whole: AutoPeftModelForSequenceClassification.from_pretrained(...) on the saved adapter."
        )
    # PEFT's set_adapter would also switch requires_grad of the other adapters, whose tensors the copy shares.
    if active_adapter(original.model) != original.adapter_name:
        raise SwagError(
            f"The adapter {original.adapter_name!r} is not the active one: call model.set_adapter({original.adapter_name!r}) first."
        )
    for name, layer in adapter_layers(original.model):
        if is_merged(layer) or is_disabled(layer):
            state = "merged into the base" if is_merged(layer) else "switched off"
            raise SwagError(f"The adapter is {state} at {name!r}: draws of its weights would change nothing. Undo that first.")
    own = {id(parameter) for parameter in original.parameters()}
    copied = copy.deepcopy(original.model, shared_tensors(original.model, own))
    weights = AdapterWeights(copied.eval(), original.adapter_name, keys=original.layout.keys)
    upcast_to_float32(copied, weights.named_parameters())  # else every draw of a bfloat16 head would be rounded
    for parameter in weights.parameters():
        parameter.requires_grad_(False)
    return weights


def _trained_keys(model: nn.Module, adapted: nn.Module, names: Mapping[str, str], adapter_name: str) -> list[str]:
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    inside = {id(parameter) for parameter in adapted.parameters()}
    outside = [name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in inside]
    if outside:
        raise SwagError(
            f"{len(outside)} weights train outside the model that holds the adapter, so no posterior of the adapter covers them. "
            f"The first is {outside[0]!r}. Freeze them."
        )
    if not trained:
        raise SwagError(
            "Nothing in the model trains: every parameter has requires_grad=False. Was it loaded without is_trainable=True?"
        )
    unsaved = sorted(trained - set(names.values()))
    if unsaved:
        raise SwagError(
            f"{len(unsaved)} weights train but are not in the file of the adapter {adapter_name!r}, so they would be lost when it is "
            f"saved. The first is {unsaved[0]!r}. Name its module in modules_to_save, or freeze it."
        )
    return [key for key, name in names.items() if name in trained]


def _path_to(model: nn.Module, parameter_name: str) -> list[tuple[Mapping[str, object], str, object]]:
    """The dictionaries, names and members that lead from the model to a parameter. Asking the modules costs thirty times more."""
    path: list[tuple[Mapping[str, object], str, object]] = []
    module = model
    *modules, last = parameter_name.split(".")
    for name in modules:
        path.append((module._modules, name, module._modules[name]))
        module = module._modules[name]
    return [*path, (module._parameters, last, module._parameters[last])]
