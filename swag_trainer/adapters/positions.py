"""Positions of a model: the longest input that it, and its tokenizer, can take."""

from __future__ import annotations

from typing import Any

from torch import nn

# What transformers' models call their tables of learned or sinusoidal positions.
_TABLES = {"position_embeddings", "embed_positions", "wpe"}
_NO_LIMIT = 10**9  # tokenizers without a length of their own say 1e30


def num_positions(model: nn.Module) -> int | None:
    """Return how many tokens a model can take, None where its positions are not looked up in a table (rotary, relative, ALiBi).

    A table may begin with rows that no token uses: RoBERTa counts from the row behind the padding's, so that 514 rows are 512 positions;
    OPT and BART skip two.
    """
    sizes = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding):
            skipped = getattr(module, "offset", None)
            if not isinstance(skipped, int):
                skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            sizes.append(module.num_embeddings - skipped)
    return min(sizes, default=None)


def longest_input(tokenizer: Any, model: nn.Module) -> int | None:
    """Return where a text is truncated: the smaller of the tokenizer's maximum length and the model's positions; None without a limit."""
    own = tokenizer.model_max_length
    limits = [limit for limit in (own if own < _NO_LIMIT else None, num_positions(model)) if limit is not None]
    return min(limits, default=None)
