"""Resampled validation examples: what a recipe is worth on average over the examples that it chooses on, for the same trained weights.

With 100 validation examples the luck of the draw decides as much as the recipe. Here they are drawn from the test examples again and
again, and the others are tested on. Nothing is trained or predicted anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from study.predictions import Draw, Run
from study.recipes import Outcome
from study.tasks import Examples, TaskData


class Resampled(Run):
    """A run whose test examples are divided anew into validation and test examples.

    Args:
        run: The run.
        validation: Indices of those that become validation examples; the others stay test examples.
    """

    def __init__(self, run: Run, validation: np.ndarray) -> None:
        test = run.data.splits["test"]
        others = np.setdiff1d(np.arange(len(test.texts)), validation)
        self.fitted, self.seed, self._run, self._parts = {}, run.seed, run, {"validation": validation, "test": others}
        splits = {
            name: Examples([test.texts[index] for index in part], test.labels[part], test.base, test.frozen_layers)
            for name, part in self._parts.items()
        }
        self.data = TaskData(run.data.num_labels, splits)

    def logits(self, draw: Draw, split: str) -> np.ndarray:
        """Return the logits of the examples that are of a split now. Shape (S, N, C)."""
        return self._run.logits(draw, "test")[:, self._parts[split]]


def resampled_nll(
    run: Run, recipes: Mapping[str, Callable[[Run], Outcome]], *, validation_rows: int, repeats: int
) -> dict[str, float]:
    """Return the mean test NLL of each recipe over divisions of the test examples, the same divisions for all recipes.

    Args:
        run: A run.
        recipes: By name. They may use logits of validation and test examples only.
        validation_rows: How many examples to choose on.
        repeats: How many divisions.
    """
    generator = np.random.default_rng(run.seed)
    found: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(repeats):
        divided = Resampled(run, generator.permutation(len(run.data.splits["test"].texts))[:validation_rows])
        labels = divided.data.splits["test"].labels
        for name, recipe in recipes.items():
            probabilities = recipe(divided).probabilities
            found[name].append(float(-np.log(probabilities[np.arange(len(labels)), labels]).mean()))
    return {name: float(np.mean(losses)) for name, losses in found.items()}
