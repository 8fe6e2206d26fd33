"""A posterior whose answers differ from text to text; those of the tiny random BERT after 24 steps hardly do."""

from __future__ import annotations

from dataclasses import replace

import torch

from swag_trainer import SwagPosterior


def lively(posterior: SwagPosterior) -> SwagPosterior:
    """The posterior with a mean and deviations so large that the top label's score goes from 0.4 to 0.9 over the texts."""
    generator = torch.Generator().manual_seed(0)
    size = posterior.layout.size
    mean = 3 * torch.randn(size, generator=generator)
    deviations = 0.5 * torch.randn(posterior.rank, size, generator=generator)
    return replace(posterior, gaussian=replace(posterior.gaussian, mean=mean, deviations=deviations))
