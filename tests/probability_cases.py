"""Random probabilities and labels, awkward ones among them, and borders of bins, for the tests of the metrics."""

import functools
from fractions import Fraction

import numpy as np
from scipy.special import softmax

KINDS = ("plain", "ties", "one class", "constant", "perfect", "certain and wrong", "few rows")


def probability_cases(count=1000, *, inside=False):
    """Yield ``count`` pairs of probabilities (N, C) and labels (N,), the kinds in turn.

    ``inside`` keeps every probability off 0 and 1, for libraries that treat the borders otherwise.
    """
    for index in range(count):
        probabilities, labels = probability_case(KINDS[index % len(KINDS)], seed=index)
        if inside:
            probabilities = 0.999 * probabilities + 0.001 / probabilities.shape[1]
        yield probabilities, labels


@functools.cache  # a dozen tests go through the same thousand
def probability_case(kind, *, seed):
    generator = np.random.default_rng(seed)
    rows = generator.integers(1, 5) if kind == "few rows" else generator.integers(5, 80)
    classes = generator.integers(2, 7)
    probabilities = softmax(generator.normal(size=(rows, classes)) * generator.uniform(0.2, 4), axis=1)
    labels = np.array([generator.choice(classes, p=row) for row in probabilities])
    if kind == "ties":  # eighths, so that many rows share a confidence and many bins are empty
        probabilities = generator.multinomial(8, np.full(classes, 1 / classes), size=rows) / 8
    elif kind == "one class":
        labels = np.full(rows, generator.integers(classes))
    elif kind == "constant":
        probabilities = np.tile(probabilities[:1], (rows, 1))
    elif kind == "perfect":
        probabilities = np.eye(classes)[labels]
    elif kind == "certain and wrong":
        probabilities = np.eye(classes)[(labels + 1) % classes]
    probabilities.setflags(write=False)
    labels.setflags(write=False)
    return probabilities, labels


def equal_mass(values, num_bins):
    """The borders of bins of equal mass: quantiles, interpolated in exact fractions. A list of num_bins + 1."""
    ordered = sorted(values)
    edges = [0.0]
    for index in range(1, num_bins):
        place = Fraction(index * (len(ordered) - 1), num_bins)
        low = int(place)
        edges.append(ordered[low] if place == low else ordered[low] + float(place - low) * (ordered[low + 1] - ordered[low]))
    return [*edges, 1.0]


def filled_bins(values, edges):
    """Yield which values lie in each bin that is not empty. A bin holds its upper border, and the first one all below it too."""
    for low, high in zip([-1.0, *edges[1:-1]], [*edges[1:-1], 2.0], strict=True):
        inside = (low < values) & (values <= high)
        if inside.any():
            yield inside
