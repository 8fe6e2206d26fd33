"""Averaged predictions of weight draws, and their uncertainty: entropy, mutual information, standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from swag_trainer.prediction.display import Events, as_frame, class_rows, class_text, regression_rows, regression_text
from swag_trainer.prediction.monte_carlo import standard_error, weighted_mean
from swag_trainer.tasks.base import Link

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False, repr=False)
class Predictive(Events):
    """Averaged class probabilities and how uncertain they are. Entropies are in nats; all arrays are float64.

    N counts the events of the data: its examples, or where a task has several events in an example (the tokens of a text), all of them,
    one example after the other. Means over the draws are weighted where the posterior gives its draws weights (a mixture).

    Total uncertainty splits into what the draws agree is unclear and what they disagree about (Depeweg et al. 2018,
    arXiv:1710.07283): ``entropy = aleatoric + mutual_information``.

    ``predictive[3]`` is one event as a dictionary, with the keys of the pipeline's output; ``predictive[:5]`` and ``predictive[mask]`` are
    some of the events as a `Predictive`.

    Attributes:
        probabilities: Mean over the draws of the probabilities, never of the logits. Shape (N, C). Rows sum to 1, unless the
            classes do not exclude each other (multi-label).
        entropy: Entropy of the mean probabilities: total uncertainty. For several labels at once, summed over them. Shape (N,).
        aleatoric: Mean over the draws of each draw's entropy. Shape (N,).
        mutual_information: Between the class and the weights: epistemic uncertainty, >= 0. Shape (N,).
        variation_ratio: Fraction of the draws that do not vote with the majority; for several labels, averaged over them. (N,).
        std: Standard deviation of each probability over the draws (divisor S). Shape (N, C).
        standard_error: Monte-Carlo standard error of each mean probability: how far it is from that of infinitely many draws, root mean
            square. From the spread of independent blocks of draws, see `standard_error`; NaN from a single block, which one set of
            matched draws is. Shape (N, C).
        num_draws: How many draws each example was predicted with. Shape (N,).
        draw_probabilities: Each draw's probabilities, if they were asked for. Shape (S, N, C).
        energy: Mean over the draws of the energy -T log sum exp(logits / T) (Liu et al. 2020, arXiv:2010.03759), T the temperature:
            higher for OOD examples. None where the classes do not exclude each other. Shape (N,).
        between_members: Of a mixture, the part of the mutual information that is between the class and the member: what the averages of
            the members disagree about. The rest, `within_members`, is what the draws of a member disagree about. None for a single
            posterior. Shape (N,).
        ood_score: How far the example lies from every class, as a fraction of held-out examples, in [0, 1): see
            `swag_trainer.posterior.features`. None where the posterior has none. Shape (N,).
        labels: Names of the C classes; None where the posterior's record has none.
    """

    probabilities: np.ndarray
    entropy: np.ndarray
    aleatoric: np.ndarray
    mutual_information: np.ndarray
    variation_ratio: np.ndarray
    std: np.ndarray
    standard_error: np.ndarray
    num_draws: np.ndarray
    draw_probabilities: np.ndarray | None = None
    energy: np.ndarray | None = None
    ood_score: np.ndarray | None = None
    between_members: np.ndarray | None = None
    labels: tuple[str, ...] | None = None

    @property
    def within_members(self) -> np.ndarray | None:
        """Of a mixture, the mutual information less `between_members`. Shape (N,); None for a single posterior."""
        return None if self.between_members is None else self.mutual_information - self.between_members

    def __len__(self) -> int:
        """N, the number of events."""
        return len(self.probabilities)

    def _rows(self) -> list[dict[str, Any]]:
        """Return every event as a dictionary, see `class_rows`."""
        return class_rows(self)

    def __repr__(self) -> str:
        """Sizes and means, never arrays."""
        return class_text(self)

    def to_pandas(self, *, probabilities: bool = False) -> pandas.DataFrame:
        """Return a table with a row for each event: label, score and uncertainties.

        Args:
            probabilities: Add a column for each class, with its probability.

        Raises:
            ImportError: pandas is not installed.
        """
        rows = self._rows()
        if probabilities:
            names = self.labels or [str(index) for index in range(self.probabilities.shape[1])]
            own = ({f"p({name})": value for name, value in zip(names, each, strict=True)} for each in self.probabilities)
            rows = [row | each for row, each in zip(rows, own, strict=True)]
        return as_frame(rows)

    @classmethod
    def from_logits(
        cls,
        logits: Tensor,
        link: Link,
        *,
        temperature: float = 1.0,
        keep_draws: bool = False,
        draws_per_block: int = 1,
        weights: Tensor | None = None,
        members: Tensor | None = None,
    ) -> Predictive:
        """Average the predictions of S draws.

        Args:
            logits: Shape (S, N, C).
            link: "softmax" for classes that exclude each other, "sigmoid" for labels that do not.
            temperature: What each draw's logits are divided by before the link, > 0.
            keep_draws: Keep the probabilities of each draw.
            draws_per_block: See `standard_error`.
            weights: What each draw counts in every mean over the draws. Shape (S,), sums to 1; None where all count the same.
            members: The member of a mixture that each draw comes from. Shape (S,); None for a single posterior.
        """
        draws = apply_link(logits, link, temperature)
        mean = weighted_mean(draws, weights)
        entropy = _entropy(mean, link)
        aleatoric = weighted_mean(_entropy(draws, link), weights)
        return cls(
            probabilities=mean.numpy(),
            entropy=entropy.numpy(),
            aleatoric=aleatoric.numpy(),
            mutual_information=(entropy - aleatoric).clamp_min(0).numpy(),  # Jensen; below 0 by rounding only
            variation_ratio=_variation_ratio(draws, link, weights).numpy(),
            std=_spread(draws, mean, weights).numpy(),
            standard_error=standard_error(draws, draws_per_block, weights).numpy(),
            num_draws=np.full(draws.shape[1], len(draws)),
            draw_probabilities=draws.numpy() if keep_draws else None,
            energy=weighted_mean(_energy(logits, temperature), weights).numpy() if link == "softmax" else None,
            between_members=None if members is None else _between_members(draws, entropy, link, weights, members).numpy(),
        )

    @classmethod
    def from_batches(cls, parts: Sequence[Predictive], order: Sequence[int]) -> Predictive:
        """Put the predictives of batches together; ``order[i]`` is the place of the i-th event in the result."""
        return cls(**_put_together(parts, order, draws="draw_probabilities"))

    def select(self, events: np.ndarray) -> Predictive:
        """Return some of the N events, by their numbers or by a mask of shape (N,)."""
        return type(self)(**_select(self, events, draws="draw_probabilities"))


@dataclass(frozen=True, eq=False, repr=False)
class RegressionPredictive(Events):
    """Averaged outputs of a regression model; float64.

    Attributes:
        mean: Mean over the draws. Shape (N, C), C outputs.
        std: Standard deviation over the draws (divisor S): epistemic only, the noise of the targets is not in it. Shape (N, C).
        standard_error: As in `Predictive`. Shape (N, C).
        num_draws: How many draws each example was predicted with. Shape (N,).
        draw_values: Each draw's outputs, if they were asked for. Shape (S, N, C).
    """

    mean: np.ndarray
    std: np.ndarray
    standard_error: np.ndarray
    num_draws: np.ndarray
    draw_values: np.ndarray | None = None

    def __len__(self) -> int:
        """N, the number of events."""
        return len(self.mean)

    def _rows(self) -> list[dict[str, Any]]:
        """Return every event as a dictionary, see `regression_rows`."""
        return regression_rows(self)

    def __repr__(self) -> str:
        """Sizes and means, never arrays."""
        return regression_text(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with a row for each event: mean and standard deviation.

        Raises:
            ImportError: pandas is not installed.
        """
        return as_frame(self._rows())

    @classmethod
    def from_outputs(
        cls, outputs: Tensor, *, keep_draws: bool = False, draws_per_block: int = 1, weights: Tensor | None = None
    ) -> RegressionPredictive:
        """Average the outputs of S draws, as `Predictive.from_logits` does. Shape (S, N, C)."""
        draws = apply_link(outputs, "identity")
        mean = weighted_mean(draws, weights)
        return cls(
            mean=mean.numpy(),
            std=_spread(draws, mean, weights).numpy(),
            standard_error=standard_error(draws, draws_per_block, weights).numpy(),
            num_draws=np.full(draws.shape[1], len(draws)),
            draw_values=draws.numpy() if keep_draws else None,
        )

    @classmethod
    def from_batches(cls, parts: Sequence[RegressionPredictive], order: Sequence[int]) -> RegressionPredictive:
        """Put the predictives of batches together; ``order[i]`` is the place of the i-th event in the result."""
        return cls(**_put_together(parts, order, draws="draw_values"))

    def select(self, events: np.ndarray) -> RegressionPredictive:
        """Return some of the N events, by their numbers or by a mask of shape (N,)."""
        return type(self)(**_select(self, events, draws="draw_values"))


def summarise(
    logits: Tensor, link: Link, *, temperature: float = 1.0, members: Tensor | None = None, **averaging: Any
) -> Predictive | RegressionPredictive:
    """Average the outputs of S draws into the kind of predictive that the link asks for.

    Args:
        logits: Shape (S, N, C).
        link, temperature, members: As in `Predictive.from_logits`; a regression ("identity") ignores temperature and members.
        averaging: ``keep_draws``, ``draws_per_block`` and ``weights``, as in `Predictive.from_logits`.
    """
    if link == "identity":
        return RegressionPredictive.from_outputs(logits, **averaging)
    return Predictive.from_logits(logits, link, temperature=temperature, members=members, **averaging)


def apply_link(logits: Tensor, link: Link, temperature: float = 1.0) -> Tensor:
    """Return the prediction of each draw: probabilities, or the outputs themselves for a regression, which has no temperature.

    Float64, in the shape of the logits.
    """
    logits = logits.double()
    if link == "identity":
        return logits
    logits = logits / temperature
    return logits.softmax(-1) if link == "softmax" else logits.sigmoid()


def _energy(logits: Tensor, temperature: float) -> Tensor:
    """-T log sum exp(logits / T) over the last axis, float64."""
    return -temperature * (logits.double() / temperature).logsumexp(-1)


def _entropy(probabilities: Tensor, link: Link) -> Tensor:
    """Entropy in nats over the last axis; 0 log 0 is 0."""
    entropy = torch.special.entr(probabilities)
    if link == "sigmoid":
        entropy = entropy + torch.special.entr(1 - probabilities)
    return entropy.sum(-1)


def _between_members(draws: Tensor, entropy: Tensor, link: Link, weights: Tensor | None, members: Tensor) -> Tensor:
    """Entropy of the mixture less the mean entropy of the members' averages, both of weighted draws. Shape (N,)."""
    counts = torch.full((len(draws),), 1 / len(draws), dtype=torch.float64) if weights is None else weights.double().cpu()
    apart = torch.zeros_like(entropy)
    for member in members.unique():
        own = members == member
        if (total := counts[own].sum()) > 0:
            apart += total * _entropy(weighted_mean(draws[own], counts[own] / total), link)
    return (entropy - apart).clamp_min(0)  # Jensen; below 0 by rounding only


def _spread(draws: Tensor, mean: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None and len(mean):  # torch warns of a deviation of nothing
        return draws.std(dim=0, correction=0)
    return weighted_mean((draws - mean).square(), weights).sqrt()


def _variation_ratio(draws: Tensor, link: Link, weights: Tensor | None) -> Tensor:
    if link == "sigmoid":
        fraction = weighted_mean((draws > 0.5).double(), weights)
        return torch.minimum(fraction, 1 - fraction).mean(-1)
    votes = weighted_mean(torch.nn.functional.one_hot(draws.argmax(-1), draws.shape[-1]).double(), weights)
    return 1 - votes.amax(-1)


def _put_together(parts: Sequence[Predictive | RegressionPredictive], order: Sequence[int], *, draws: str) -> dict[str, Any]:
    places = np.argsort(np.asarray(order))
    result: dict[str, Any] = {}
    for item in fields(parts[0]):
        if item.name == "labels":  # of all events
            result[item.name] = getattr(parts[0], item.name)
            continue
        values = [getattr(part, item.name) for part in parts]
        axis = 1 if item.name == draws else 0
        result[item.name] = (
            None if values[0] is None else np.concatenate(_as_wide(values, axis), axis=axis).take(places, axis=axis)
        )
    return result


def _as_wide(arrays: Sequence[np.ndarray], axis: int) -> Sequence[np.ndarray]:
    """Return arrays with as many classes each as the one with the most, 0 for those that others lack; classes follow the events' axis."""
    if arrays[0].ndim == axis + 1 or len({array.shape[-1] for array in arrays}) == 1:
        return arrays
    width = max(array.shape[-1] for array in arrays)
    return [np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])]) for array in arrays]


def _select(whole: Predictive | RegressionPredictive, events: np.ndarray, *, draws: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for item in fields(whole):
        value = getattr(whole, item.name)
        if item.name == "labels" or value is None:  # of all events
            result[item.name] = value
        else:
            result[item.name] = value[:, events] if item.name == draws else value[events]
    return result
