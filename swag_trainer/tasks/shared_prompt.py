"""Several continuations of one prompt in one sequence: the tree attention mask, reset positions, and the log-probability of each.

A sequence holds the prompt's tokens once and then those of each choice. Under a mask of shape (B, 1, T, T) the tokens of a choice attend to
the prompt and to their own choice, and each choice counts its positions from the end of the prompt. A model whose attention takes such a
mask gives the same logits as for one sequence per choice, at the cost of the prompt's tokens once.

`CHOICE` is the column of shape (B, T) that says what a token belongs to: 0 for prompt and padding, c + 1 for choice c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

CHOICE = "choice_numbers"
Mask = Literal["boolean", "additive"]

# What the implementations of attention in transformers take as a mask of four dimensions; the others take none.
_MASKS: dict[str, Mask] = {"sdpa": "boolean", "eager": "additive"}
# How far apart the logits of one and the same token may be for rounding, relative to the largest logit. In lower precision: to how far
# they are from those without the mask.
_TOLERANCE = 1e-4
_TOLERANCE_IN_LOW_PRECISION = 0.1
# What a model may do with a mask of four dimensions that it was not written for.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)


def attended(batch: Mapping[str, Tensor]) -> Tensor:
    """Return which positions are no padding. Shape (B, T), bool."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def visible(batch: Mapping[str, Tensor]) -> Tensor:
    """Return which key each query attends to: of the prompt and of its own choice, itself and those before. Shape (B, T, T), bool.

    A padded position attends to itself, as no softmax may be empty.
    """
    choices = batch[CHOICE]
    earlier = torch.ones(choices.shape[1], choices.shape[1], dtype=torch.bool, device=choices.device).tril()
    same = (choices[:, None, :] == 0) | (choices[:, None, :] == choices[:, :, None])
    itself = torch.eye(choices.shape[1], dtype=torch.bool, device=choices.device)
    return earlier & same & attended(batch)[:, None, :] | itself


def tree_inputs(batch: Mapping[str, Tensor], mask: Mask, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what a model is given for a batch of trees: tokens, mask and positions. Shapes (B, T), (B, 1, T, T), (B, T)."""
    seen = visible(batch)
    positions = seen.sum(dim=-1) - 1
    shown = seen[:, None]
    if mask == "additive":
        shown = torch.zeros(shown.shape, dtype=dtype, device=shown.device).masked_fill(~shown, torch.finfo(dtype).min)
    return {"input_ids": batch["input_ids"], "attention_mask": shown, "position_ids": positions}


def num_positions(batch: Mapping[str, Tensor]) -> int:
    """Return how many positions the prompt has with its longest choice, at most over the batch."""
    return int(visible(batch).sum(dim=-1).max())


def predicted_from(batch: Mapping[str, Tensor]) -> Tensor:
    """Return for each token of a choice the index of the one before: of its choice, or the last of the prompt; else 0. Shape (B, T)."""
    indices = torch.arange(batch[CHOICE].shape[1], device=batch[CHOICE].device)
    before = visible(batch) & (indices[:, None] != indices)
    return (before * indices).amax(dim=-1) * (batch[CHOICE] > 0)


def separate(batch: Mapping[str, Tensor], num_choices: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Take trees apart into one sequence for each choice, padded on the right.

    Args:
        batch: B trees.
        num_choices: C, at least as many as any of them has.

    Returns:
        The sequences as a batch of R rows, with `CHOICE` 0 or 1; which tree and which choice each of them is. Shapes (R,), (R,).
    """
    numbers = torch.arange(1, num_choices + 1, device=batch[CHOICE].device)[:, None]
    choices = batch[CHOICE][:, None]
    of_choice = attended(batch)[:, None] & (choices == numbers)  # (B, C, T)
    trees, places = of_choice.any(dim=-1).nonzero(as_tuple=True)
    own = of_choice[trees, places]
    kept = own | (attended(batch) & (batch[CHOICE] == 0))[trees]
    lengths = kept.sum(dim=1)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(lengths.max())]
    rows = {"input_ids": batch["input_ids"][trees].gather(1, order), CHOICE: own.gather(1, order).long()}
    rows["attention_mask"] = (torch.arange(order.shape[1], device=order.device) < lengths[:, None]).long()
    return rows, trees, places


def mean_log_probabilities(logits: Tensor, batch: Mapping[str, Tensor], num_choices: int) -> Tensor:
    """Return the mean log-probability per token of each choice, given the prompt. Shape (B, C), float32; 0 for a choice without tokens.

    Args:
        logits: Those of the last L positions, or of all. Shape (B, L, V).
        batch: The trees.
        num_choices: C.
    """
    choices = batch[CHOICE]
    rows = torch.arange(len(choices), device=choices.device)[:, None]
    # From the end, as the first positions may be left out, and as prompt learning puts others in front.
    places = (predicted_from(batch) - choices.shape[1] + logits.shape[1]).clamp_min(0)
    normaliser = logits.float().logsumexp(dim=-1)
    tokens = logits[rows, places, batch["input_ids"]].float() - normaliser.gather(1, places)
    sums = tokens.new_zeros(len(choices), num_choices + 1).scatter_add(1, choices, tokens)
    counts = tokens.new_zeros(len(choices), num_choices + 1).scatter_add(1, choices, torch.ones_like(tokens))
    return (sums / counts.clamp_min(1))[:, 1:]


def mask_for(model: nn.Module, base: Any, parameters: set[str]) -> Mask | None:
    """Return which mask a causal language model takes for trees; None where it takes none, and needs one sequence for each choice.

    The model is asked: one small tree runs through it with the mask, without it, and as one sequence for each choice. Attention over a
    recurrence, a mask of two dimensions or positions of its own shows there.

    Args:
        model: The PEFT model, with any weights.
        base: The model under the adapter.
        parameters: What its forward takes.
    """
    mask = _MASKS.get(getattr(base.config, "_attn_implementation", "eager"))
    if mask is None or "position_ids" not in parameters:
        return None
    device = base.get_input_embeddings().weight.device
    choices = torch.tensor([[0] * 5 + [1] * 2 + [2] * 3 + [3] * 2], device=device)
    size = base.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(choices.shape[1], device=device) * 7919 + 11)[None] % size
    tree = {"input_ids": ids, CHOICE: choices}
    rows, _, _ = separate(tree, 3)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            plain = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])["logits"].float()
            try:
                with_mask = model(**tree_inputs(tree, mask, base.dtype))["logits"].float()
            except _REFUSALS:
                return None
            without = model(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"].float()
    finally:
        model.train(was_training)
    if with_mask.shape[1] != choices.shape[1]:
        return None
    expected, found, untreated = plain[rows[CHOICE].bool()], with_mask[0, choices[0] > 0], without[0, choices[0] > 0]
    error = (found - expected).abs().max()
    limit = _TOLERANCE * expected.abs().max()
    if expected.dtype != base.dtype:
        limit = torch.maximum(limit, _TOLERANCE_IN_LOW_PRECISION * (untreated - expected).abs().max())
    return mask if bool(error <= limit) else None
