"""Conversion to plain LoRA of twice the rank, for adapters whose initialisation changed the base weights (OLoRA, PiSSA, CorDA, LoRA-GA).

OLoRA, PiSSA, CorDA and LoRA-GA put W - s B0 A0 in the place of the base weight W, in memory only. What such an adapter means on the
untouched base is plain LoRA again:

    W - s B0 A0 + s B A  =  W + s [B, -B0] [A; A0]

(the conversion that Meng et al. 2024 give for PiSSA, arXiv:2404.02948). It holds for every draw of A and B, so a posterior is lifted
as a whole: A0 and B0 have no variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from swag_trainer.errors import AdapterMismatchError, SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.saved_adapter import InitialWeights, SavedAdapter

_BASE_CHANGING = ("olora", "pissa", "corda", "lora_ga", "loftq")
_REPRODUCIBLE = ("olora", "pissa")
# Settings of a LoRA adapter that make its contribution something else than s B A at every token, or A and B something else than
# two matrices that can be made longer.
NOT_PLAIN = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
)


def base_changed_by(config: Mapping[str, Any]) -> str | None:
    """Return the initialisation of an adapter if it changes the base weights in memory, else None.

    >>> base_changed_by({"init_lora_weights": "pissa_niter_4"})
    'pissa_niter_4'
    >>> base_changed_by({"init_lora_weights": "gaussian"})

    Args:
        config: The contents of adapter_config.json.
    """
    initialisation = config.get("init_lora_weights")
    changes = isinstance(initialisation, str) and initialisation.lower().startswith(_BASE_CHANGING)
    return initialisation if changes else None


def is_reproducible(initialisation: str) -> bool:
    """Does every process that loads the adapter on the same base change the base in the same way?

    OLoRA and PiSSA compute the change from the base weight alone. ``pissa_niter_N`` draws random numbers for it, CorDA and
    LoRA-GA need data which no adapter file holds: PEFT 0.21 refuses to load the one and leaves the base as it is for the other.
    """
    return initialisation.lower() in _REPRODUCIBLE


def needs_lift(config: Mapping[str, Any]) -> bool:
    """Must this adapter be saved as plain LoRA, because its own file gives other predictions in the next process?"""
    initialisation = base_changed_by(config)
    return initialisation is not None and not is_reproducible(initialisation)


def rank_axis(key: str) -> int | None:
    """Return along which axis of a weight its rank runs: 0 for A, 1 for B, None for what is no LoRA matrix.

    Args:
        key: The weight's name in the adapter's file.
    """
    parts = key.split(".")
    if parts[-1] == "bias":
        return None
    if "lora_A" in parts or "lora_embedding_A" in parts:
        return 0
    return 1 if "lora_B" in parts or "lora_embedding_B" in parts else None


def plain_lora_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the plain LoRA that an adapter which changed its base is lifted to.

    Args:
        config: The contents of adapter_config.json, or the fields of a PEFT config.

    Raises:
        SwagError: The adapter did not change its base, or is of a kind that plain LoRA cannot express.
    """
    initialisation = base_changed_by(config)
    if initialisation is None:
        raise SwagError(
            f"The adapter did not change its base: init_lora_weights={config.get('init_lora_weights')!r}. It is plain LoRA already, or "
            "no LoRA."
        )
    if initialisation.lower() == "loftq":
        raise SwagError(
            "LoftQ puts a quantised copy in the place of the base: not the base less a low-rank part, and saved nowhere, so no saved "
            "adapter gives this model's answers. Load the base in 4 bit, initialise with init_lora_weights=True and call "
            "peft.replace_lora_weights_loftq(model)."
        )
    obstacle = next((name for name in NOT_PLAIN if config.get(name)), None)
    if obstacle is not None or config.get("peft_type") != "LORA":
        raise SwagError(
            f"An adapter initialised with {initialisation!r} is exported as plain LoRA only where its part in a layer is s B A; "
            f"{obstacle or 'peft_type'}={config.get(obstacle or 'peft_type')!r} makes it something else."
        )
    # sqrt(2) alpha / sqrt(2 r) for rsLoRA. PEFT's own conversion doubles alpha_pattern in both cases and so refuses the combination.
    factor = 2**0.5 if config.get("use_rslora") else 2
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    return {
        **config,
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {pattern: 2 * rank for pattern, rank in ranks.items()},
        "alpha_pattern": {pattern: factor * alpha for pattern, alpha in alphas.items()},
        "init_lora_weights": True,
        # PEFT warns about settings of an initialisation that is not used.
        "corda_config": None,
        "lora_ga_config": None,
    }


def to_plain_lora(posterior: WeightPosterior) -> WeightPosterior:
    """Export a posterior as plain LoRA of twice the rank, for an adapter whose initialisation changed the base weights.

    OLoRA, PiSSA, CorDA and LoRA-GA train against W - s B0 A0, which is in memory only. The plain LoRA gives the same answers on the
    base as it is on disk. A becomes [A; A0] and B becomes [B, -B0], in every weight vector and in the adapter's file; A0 and B0 have
    no variance. Every other weight (heads, biases, DoRA's magnitudes) passes through as it is. Ranks double, alphas double too (times
    the square root of 2 under ``use_rslora``, whose scaling is alpha / sqrt(r)), in the patterns as well, so every layer keeps its
    scaling. The same seed gives other draws, as there are more weights to draw for: thresholds and
    quantiles that `tune` calibrated for the old draws are dropped.

    Args:
        posterior: Of any kind that can be carried over; its layout may be a subset of the adapter's weights. It stays as it is.

    Raises:
        AdapterMismatchError: The initial weights belong to another adapter.
        SwagError: The adapter did not change its base, its initial weights are not known (its training went on from a loaded
            adapter), or plain LoRA cannot express it.
    """
    adapter, layout = posterior.adapter, posterior.layout
    config = plain_lora_config(adapter.config)
    if adapter.initial is None:
        raise SwagError(
            f"The posterior of this {posterior.record.initialisation!r} adapter does not hold the adapter's initial weights, without "
            "which it cannot become plain LoRA: SwagCallback saw it only after training had begun."
        )
    tails = _tails(adapter, adapter.initial)
    zeros = {key: torch.zeros_like(tail) for key, tail in tails.items()}
    tensors = {
        key: _longer(tensor, tails[key].to(tensor.dtype), rank_axis(key)) if key in tails else tensor
        for key, tensor in adapter.tensors.items()
    }
    lifted, tuning = SavedAdapter(config, tensors), posterior.record.tuning
    record = replace(
        posterior.record,
        initialisation=f"{posterior.record.initialisation}, exported as plain LoRA",
        base_fingerprint=dict(adapter.initial.pristine),
        adapter_digest=lifted.digest,
        adapter_settings=lifted.settings,
        tuning=tuning and replace(tuning, thresholds=[], conformal=[]),
    )
    return posterior.reparametrised(
        WeightLayout.of({key: tensors[key] for key in layout.keys}),
        record,
        lifted,
        position=lambda vectors: _lift_flat(layout, vectors, tails),
        displacement=lambda vectors: _lift_flat(layout, vectors, zeros),
    )


def _tails(adapter: SavedAdapter, initial: InitialWeights) -> dict[str, Tensor]:
    """What is put behind each LoRA matrix: A0 and -B0."""
    keys = [key for key in adapter.tensors if rank_axis(key) is not None]
    ranks = {adapter.config["r"], *(adapter.config.get("rank_pattern") or {}).values()}
    for key in sorted({*keys, *initial.tensors}):
        ours, theirs = (tuple(mapping[key].shape) if key in mapping else None for mapping in (adapter.tensors, initial.tensors))
        if ours != theirs:
            raise AdapterMismatchError(
                f"The initial weights are of another adapter: {key!r} has the shape {ours} in the adapter and {theirs} at its "
                "initialisation (None: it is not there)."
            )
        if ours[rank_axis(key)] not in ranks:
            raise SwagError(
                f"{key!r} has the rank {ours[rank_axis(key)]}, the config says {sorted(ranks)}: the base weight is smaller than r. Doubled, "
                "PEFT could not load it. Train with a smaller r."
            )
    return {key: initial.tensors[key] if rank_axis(key) == 0 else -initial.tensors[key] for key in keys}


def _longer(stack: Tensor, tail: Tensor, axis: int) -> Tensor:
    """Put ``tail`` behind each matrix of a stack. Shapes (..., *shape) and (*shape)."""
    batch = stack.shape[: stack.dim() - tail.dim()]
    return torch.cat([stack, tail.expand(*batch, *tail.shape)], dim=len(batch) + axis)


def _lift_flat(layout: WeightLayout, vectors: Tensor, tails: Mapping[str, Tensor]) -> Tensor:
    """Lift flat vectors. Shape (..., P) to (..., P'), P' the size of the lifted layout, whose keys have the same order."""

    def pieces() -> Iterator[Tensor]:
        for key, piece in layout.unflatten(vectors).items():
            lifted = _longer(piece, tails[key].to(piece.dtype), rank_axis(key)) if key in tails else piece
            yield lifted.flatten(vectors.dim() - 1)

    return torch.cat(list(pieces()), dim=-1)
