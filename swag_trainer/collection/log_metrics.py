"""Metrics of a collection for the Trainer's logs."""

from __future__ import annotations

from swag_trainer.collection.collector import SwagCollector
from swag_trainer.distributed import is_first


class CollectionMetrics:
    """Metrics for the logs: number of snapshots, learning rate, deviation, and diagnostics of the trajectory.

    The diagnostics take a few milliseconds and are computed only after every few snapshots, so that they cost nothing beside the training also
    where every step is logged.

    Args:
        collector: The collection.
        name: Of the callback; a name other than "default" is appended to the names of the metrics.
    """

    def __init__(self, collector: SwagCollector, name: str) -> None:
        self.collector = collector
        self.name = name
        self._statistics: dict[str, float] = {}
        self._statistics_at = 0

    def __call__(self) -> dict[str, float]:
        """Return them; empty in processes other than the first, which do not keep the statistics."""
        if not is_first():
            return {}
        snapshots, score = self.collector.snapshots, self.collector.score
        count = len(snapshots.steps)
        metrics: dict[str, float] = {"swag_snapshots": count}
        if count:
            metrics["swag_deviation_norm"] = snapshots.deviation_norms[-1]
        if count and snapshots.learning_rates[-1] is not None:
            metrics["swag_learning_rate"] = snapshots.learning_rates[-1]
        if score is not None:
            metrics["swag_score"] = score
        # Fewer than before: the acceptance began anew.
        if not 0 <= count - self._statistics_at < max(1, self.collector.moments.rank // 4):
            self._statistics, self._statistics_at = self.collector.statistics(), count
        metrics |= {f"swag_{name}": value for name, value in self._statistics.items()}
        return metrics if self.name == "default" else {f"{name}_{self.name}": value for name, value in metrics.items()}
