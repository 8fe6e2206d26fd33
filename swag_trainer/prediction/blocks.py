"""Independent blocks of weight draws, with what each draw counts in an average."""

from __future__ import annotations

import torch
from torch import Tensor

from swag_trainer.errors import SwagError
from swag_trainer.posterior.base import Draws, WeightPosterior
from swag_trainer.prediction.monte_carlo import block_seed
from swag_trainer.prediction.sampler import Sampling


class DrawBlocks:
    """Blocks of S draws each, independent of each other; a block is drawn when it is first needed.

    Args:
        posterior: What to draw from.
        sampling: How to draw. At scale 0 every draw is the centre: without dropout a block is then one draw.
        device: Where the vectors shall lie.
    """

    def __init__(self, posterior: WeightPosterior, sampling: Sampling, device: torch.device) -> None:
        self._posterior, self._device = posterior, device
        self._sampling, self._scale = sampling, sampling.scale_for(posterior)
        self._blocks: list[Draws] = []

    def vectors(self, block: int) -> Tensor:
        """Return the draws of a block. Shape (S, P)."""
        while len(self._blocks) <= block:
            self._blocks.append(self._draw(len(self._blocks)))
        return self._blocks[block].vectors

    def first(self, count: int) -> Tensor:
        """Return the draws of the first blocks. Shape (count * S, P)."""
        blocks = [self.vectors(block) for block in range(count)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def block_size(self) -> int:
        """Return how many consecutive draws depend on each other."""
        self.vectors(0)
        return self._blocks[0].block_size

    def weights(self, num_draws: int) -> Tensor | None:
        """Return what each of the first draws counts. Shape (num_draws,), sums to 1; None where all count the same."""
        count = num_draws // len(self.vectors(0))
        blocks = [draws.weights for draws in self._blocks[:count]]
        return None if blocks[0] is None else torch.cat(blocks) / count

    def members(self, num_draws: int) -> Tensor | None:
        """Return the number of the member of a mixture that each of the first draws comes from. Shape (num_draws,); None without members."""
        count = num_draws // len(self.vectors(0))
        blocks = [draws.members for draws in self._blocks[:count]]
        return None if blocks[0] is None else torch.cat(blocks)

    def _draw(self, block: int) -> Draws:
        sampling, is_mean = self._sampling, self._scale == 0 and not self._sampling.dropout
        seed, num_samples = block_seed(sampling.seed, block), 1 if is_mean else sampling.num_samples
        draws = self._posterior.draw(num_samples, seed=seed, scale=self._scale, design=sampling.design)
        if sampling.center not in (None, "mean"):
            shift = self._posterior.center(sampling.center) - self._posterior.mean_vector()
            draws = draws._replace(vectors=draws.vectors + shift)
        if len(draws.vectors) % draws.block_size or (
            draws.weights is not None and draws.weights.shape != draws.vectors.shape[:1]
        ):
            raise SwagError(
                f"A posterior of kind {self._posterior.kind!r} gave {len(draws.vectors)} draws in sets of {draws.block_size} with weights of "
                f"shape {None if draws.weights is None else tuple(draws.weights.shape)}: the sets must be of equal size, with a weight per draw."
            )
        weights = None if draws.weights is None else draws.weights.double()
        return draws._replace(vectors=draws.vectors.to(self._device), weights=weights)
