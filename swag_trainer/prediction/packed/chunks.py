"""Chunks: how many weight draws go into one forward."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# More tokens in one forward cost memory and give nothing: on one CPU core 512 tokens reach 95 % of the speed of 1,024, and at 8,192 the
# activations leave the cache and S packed draws are slower than S plain forwards.
CPU_TOKENS = 1024
OTHER_TOKENS = 65_536


class Chunks:
    """Splits draws into forwards of a bounded number of tokens, and makes them smaller when memory runs out.

    Args:
        max_tokens: Draws times rows times tokens in one forward, at least 1 draw; None for 1,024 on a CPU and what half of the free
            memory holds on a GPU.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        self.max_tokens = max_tokens

    def run(self, predict: Callable[[Tensor, int], Tensor], draws: Tensor, *, tokens: int, bytes_per_token: int = 0) -> Tensor:
        """Predict with all draws.

        Args:
            predict: Draws of shape (s, P), and the place of the first of them -> their logits, shape (s, ...).
            draws: Shape (S, P).
            tokens: Tokens of the batch, that is, per draw.
            bytes_per_token: What a token takes in a forward, for a GPU.

        Returns:
            Shape (S, ...).

        Raises:
            torch.OutOfMemoryError: Not even one draw fits.
        """
        if self.max_tokens is None:
            self.max_tokens = _tokens_that_fit(draws.device, bytes_per_token)
        parts: list[Tensor] = []
        done, most = 0, max(1, self.max_tokens // tokens)
        while done < len(draws):
            size = draws_per_forward(len(draws) - done, tokens=1, max_tokens=most)
            try:
                parts.append(predict(draws[done : done + size], done))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                most = size // 2
            else:
                done += size
                continue
            # Outside of the except block, which keeps the tensors of the failed forward alive.
            self.max_tokens = most * tokens
            logger.info("Out of memory with %d draws in one forward; going on with %d.", size, most)
            if draws.is_cuda:
                torch.cuda.empty_cache()
        return torch.cat(parts)


def draws_per_forward(num_draws: int, *, tokens: int, max_tokens: int) -> int:
    """Return how many draws the next forward has.

    10 draws with room for 4 run as 4, 3, 3: equal sizes are compiled once.

    Args:
        num_draws: How many are left.
        tokens: Of one draw.
        max_tokens: Of a forward.
    """
    most = max(1, max_tokens // tokens)
    return -(-num_draws // -(-num_draws // most))


def _tokens_that_fit(device: torch.device, bytes_per_token: int) -> int:
    if device.type == "cpu":
        return CPU_TOKENS
    if device.type != "cuda" or not bytes_per_token:
        return OTHER_TOKENS // 8
    free, _ = torch.cuda.mem_get_info(device)
    return min(OTHER_TOKENS, max(CPU_TOKENS, free // 2 // bytes_per_token))
