"""Point posterior of a trained adapter: a member of a deep ensemble, or what MC dropout draws around."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from swag_trainer.fitting.adapter import TrainedAdapter
from swag_trainer.posterior.point import PointPosterior


def point_posterior(model: nn.Module, *, adapter_name: str | None = None) -> PointPosterior:
    """Return the point estimate at a trained adapter's weights.

    Several of them, from trainings with other seeds, are the members of a deep ensemble (Lakshminarayanan et al. 2017, arXiv:1612.01474),
    see `swag_trainer.PosteriorMixture`. Drawn from with dropout, one is MC dropout (Gal and Ghahramani 2016, arXiv:1506.02142).

    Args:
        model: The trained PEFT model. It stays as it is.
        adapter_name: Which adapter; default: the active one.

    Raises:
        SwagError: PEFT would not save all that was trained, or cannot write its temporary folder.
    """
    adapter = TrainedAdapter.of(model, adapter_name)
    layout = adapter.weights.layout
    return PointPosterior(layout, layout.flatten(adapter.values()), replace(adapter.record, scale=0.0), adapter.saved)
