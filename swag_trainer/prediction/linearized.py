"""The logits of the posterior in closed form, for a model taken as linear in its weights around the posterior mean.

With J the derivatives of a row's C logits by the P weights at the mean, the logits of

    f(mean) + J (weights - mean),      weights ~ N(mean, Sigma)

are normal with mean f(mean) and covariance J Sigma J^T (MacKay 1992, Neural Computation 4(5), "The evidence framework applied to
classification networks"; Immer et al. 2021, arXiv:2008.08217, where predicting with the linearised model is the point). The Gaussian over
the logits is then averaged with many matched draws of C numbers, which cost nothing beside a forward.

It is another approximation than drawing weights, and has a bias that no number of draws removes: the part of f that is not linear in the
weights within the posterior's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import SwagError
from swag_trainer.posterior.design import draw_noise
from swag_trainer.prediction.sequential import event_logits
from swag_trainer.tasks.base import Task

LOGIT_DRAWS = 1024


class LinearizedSampler:
    """Draws from the Gaussian over the logits of each event of a batch. Not for several threads at once.

    Each row costs one forward, and C backward passes for each of its events: derivatives of two rows are not to be mixed.

    Args:
        weights: The weights in a private copy of the model, which is written to.
        mean: Mean of the posterior. Shape (P,).
        quadratic_form: J -> J Sigma J^T, see `GaussianPosterior`.
        task: What of the model's outputs is predicted.
        seed: The draws of logits depend on this alone, and are the same for each event.
    """

    def __init__(
        self, weights: AdapterWeights, mean: Tensor, quadratic_form: Callable[[Tensor], Tensor], *, task: Task, seed: int
    ) -> None:
        self._weights = weights
        self._task = task
        self._seed = seed
        self._quadratic_form = quadratic_form
        with torch.inference_mode(False), torch.no_grad():
            weights.write(weights.layout.unflatten(mean))
        for parameter in weights.parameters():
            parameter.requires_grad_(True)

    def __call__(self, batch: Mapping[str, Tensor], draws: Tensor | None = None) -> Tensor:
        """Return draws of the logits, whose mean and covariance are those of `gaussian`. Shape (1,024, E, C), CPU, float64.

        Args:
            batch: What the model takes: tensors with the rows in their first dimension.
            draws: Not used: no weights are drawn.
        """
        mean, covariance = self.gaussian(batch)
        noise = logit_noise(mean.shape[1], seed=self._seed)
        return mean + torch.einsum("sd,ncd->snc", noise, symmetric_root(covariance))

    def gaussian(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of each event's logits. Shapes (E, C) and (E, C, C), CPU, float64.

        Raises:
            SwagError: The model cannot be differentiated by the adapter's weights.
        """
        means, covariances = [], []
        # Tensors of inference mode cannot take part in derivatives; their copies can.
        with torch.inference_mode(False):
            batch = {name: value.clone() if value.is_inference() else value for name, value in batch.items()}
            for row in range(len(next(iter(batch.values())))):
                for logits in self._logits({name: value[row : row + 1] for name, value in batch.items()}):
                    means.append(logits.detach().cpu().double())
                    covariances.append(self._quadratic_form(self._jacobian(logits)))
        return torch.stack(means), torch.stack(covariances)

    def _logits(self, row: Mapping[str, Tensor]) -> Tensor:
        """Logits of the events of one row at the mean, which can be differentiated. Shape (E, C), float32."""
        with self._differentiating(), torch.enable_grad():
            return event_logits(self._task, self._weights.model, row).float()

    def _jacobian(self, logits: Tensor) -> Tensor:
        """Derivatives of one event's logits, of shape (C,), by the weights. Shape (C, P), float32."""
        parameters = self._weights.parameters()
        with self._differentiating(), torch.enable_grad():
            gradients = [
                torch.autograd.grad(logit, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
                for logit in logits
            ]
        return torch.stack([torch.cat([part.flatten().float() for part in parts]) for parts in gradients])

    @contextmanager
    def _differentiating(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as problem:  # of a kernel without a backward, say, or of inference tensors
            raise SwagError(
                f"The model could not be differentiated by the weights of the adapter {self._weights.adapter_name!r}: "
                f'{str(problem).splitlines()[0]} Use method="monte_carlo", which needs no derivatives.'
            ) from problem


def logit_noise(num_classes: int, *, seed: int) -> Tensor:
    """Noise whose mean is 0 and whose second moments are exactly those of independent standard normal numbers. Shape (1,024, C)."""
    return draw_noise(LOGIT_DRAWS, num_weights=0, rank=num_classes, seed=seed, design="matched")[1].double()


def symmetric_root(covariance: Tensor) -> Tensor:
    """The symmetric R with R R = covariance, which unlike other roots moves little when the covariance does. Shape (B, C, C)."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT  # below 0 by rounding only
