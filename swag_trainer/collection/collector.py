"""SwagCollector: collects weights of any training loop into running moments and makes a posterior of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swag_trainer.adapters.coefficients import coefficient_map
from swag_trainer.adapters.plain_lora import needs_lift
from swag_trainer.adapters.read_back import check_loadable
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.diagnostics import trajectory_statistics
from swag_trainer.collection.model_metadata import base_metadata, check_saved_modules, library_versions, task_metadata
from swag_trainer.collection.moments_storage import read_moments, write_moments
from swag_trainer.collection.snapshots import Snapshots
from swag_trainer.collection.training_state import TrainedWeights
from swag_trainer.distributed import (
    broadcast_document,
    broadcast_tensor,
    count_processes,
    gather_numbers,
    is_first,
)
from swag_trainer.errors import PosteriorFormatError, SwagError, TooFewCollectionsError
from swag_trainer.posterior.coefficients import CoefficientPosterior
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.moments import RunningMoments
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import InitialWeights, SavedAdapter
from swag_trainer.posterior.swag import SwagPosterior, SwagRecord
from swag_trainer.posterior.tensor_file import check_names

logger = logging.getLogger(__name__)


class SwagCollector:
    """Folds the weights of one adapter into running moments and makes a posterior of them.

    In a distributed run every process has one and calls the same methods; the statistics live in the first process alone.

    Args:
        model: A PEFT model, possibly wrapped.
        rank: K, how many deviations to keep: 0 for SWAG-diagonal, else at least 2.
        adapter_name: Which adapter; the active one by default.
        device: Where the statistics live, K + 4 vectors of P float32 numbers.
        schedule, acceptance: How the snapshots are chosen, for the record.
        initial: A0 and B0 of an adapter whose initialisation changed the base, see `initial_lora_if_needed`.

    Attributes:
        weights: The adapter's trained weights in the model.
        moments: The statistics so far; those of processes other than the first stay empty.
        snapshots: Step, learning rate and length of the deviation of every vector that was folded in.
        num_skipped: Collections left out because a weight was not finite.
        score: Of the mean on an evaluation set, where `Adaptive` acceptance asks for one.

    Raises:
        SwagError: No PEFT model, nothing trains, or a part of the model would be random after loading.
        AdapterMismatchError: No other process could load the adapter.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int = 20,
        adapter_name: str | None = None,
        device: torch.device | str = "cpu",
        schedule: str = "",
        acceptance: str | None = None,
        initial: InitialWeights | None = None,
    ) -> None:
        self._model, self._rank, self._device = model, rank, torch.device(device)
        self._initial = initial
        self._choice = {"schedule": schedule, "acceptance": acceptance}
        self._problem_type: str | None = None  # of the checkpoint that the run was resumed from
        self.num_skipped = 0
        self.score: float | None = None
        self._is_new, self._is_over = True, False
        self._gaussian: LowRankGaussian | None = None  # what `finish` made of the moments
        self._begin(adapter_name)

    def _begin(self, adapter_name: str | None) -> None:
        """Look at the model, and make empty statistics of the weights that train now."""
        self.weights = AdapterWeights(self._model, adapter_name)
        self.layout = self.weights.layout
        check_names(self.layout.keys)
        check_saved_modules(self.weights)
        check_loadable(self.weights)
        self._map = coefficient_map(self.weights.model, self.weights.adapter_name)
        if self._map is not None and self.weights.is_sharded:
            raise SwagError(
                "The model's weights are cut up over processes; coefficients are collected where every process has them whole."
            )
        self._trained = TrainedWeights(self.weights)
        self._base = base_metadata(self.weights)
        self.moments = RunningMoments(self.layout.size if is_first() else 0, self._rank, device=self._device)
        self.snapshots = Snapshots()
        self._row = None if is_first() else torch.empty(self.layout.size, device=self._device)
        # Of the few vectors that weights are copied into; cutting them takes time.
        self._pieces_of: dict[int, list[Tensor]] = {}

    def collect(self, *, step: int, learning_rate: float | None = None) -> bool:
        """Fold the weights as they are now into the moments; in a distributed run every process has to call this.

        Weights that are not finite are skipped, counted and reported once; weights that did not move since the last collection
        (an optimizer step that loss scaling skipped, say) are not counted twice.

        Args:
            step: Number of the optimizer step, for the record.
            learning_rate: The rate at this step, for the record.

        Returns:
            Whether a vector was added, in the first process; False in the others.

        Raises:
            AdapterMismatchError: The adapter was changed since the last collection.
            SwagError: The processes have different weights, or other weights train than in the snapshots before; the adapter is merged,
                switched off or not the active one.
        """
        row = self.read(step=step)
        if not is_first():
            return False
        try:
            deviation_norm = self.moments.update_from_row()
        except FloatingPointError:
            self._skip(row, step)
            return False
        if deviation_norm is None:
            return False
        self.snapshots.add(step, learning_rate, deviation_norm)
        return True

    def read(self, *, step: int) -> Tensor:
        """Return the weights as they are now, put together and flattened; in a distributed run every process has to call this.

        Returns:
            Shape (P,), float32; the next call may overwrite it.

        Raises:
            AdapterMismatchError: The adapter was changed.
            SwagError: The processes have different weights, or other weights train than in the snapshots before.
        """
        self._refuse_after_the_end()
        if self._is_new and self._trained.have_changed:
            self._begin(self.weights.adapter_name)  # weights that were unfrozen on the way to the first collection
        self._trained.check(step)
        self._is_new = False
        row = self.moments.next_row if self._row is None else self._row
        pieces = self._pieces_of.get(row.data_ptr())
        if pieces is None:
            pieces = self._pieces_of[row.data_ptr()] = list(self.layout.unflatten(row).values())
        self.weights.copy_into(pieces)
        if count_processes() > 1:
            checksums = gather_numbers(int(row.view(torch.int32).sum(dtype=torch.int64)))
            mismatched_ranks = [rank for rank, checksum in enumerate(checksums) if checksum != checksums[0]]
            if mismatched_ranks:
                raise SwagError(
                    f"At step {step} the adapter's weights in the processes {mismatched_ranks} are not those in process 0, so there is no one "
                    "trajectory to collect. Do all of them start from the same weights and exchange their gradients (DDP does both)?"
                )
        return row

    @property
    def mean(self) -> dict[str, Tensor]:
        """The mean of what trains, after `finish`: of the coefficients where there are such, ``{key: (*shape)}``."""
        return self.layout.unflatten(self._gaussian.mean)

    def mean_with(self, row: Tensor) -> dict[str, Tensor]:
        """Return what the mean would be with one more vector, ``{key: (*shape)}``, in every process; every process has to call this."""
        mean = broadcast_tensor(self.moments.mean_with(row) if is_first() else None, shape=(self.layout.size,))
        return self.layout.unflatten(mean)

    def posterior(self, *, adapter: SavedAdapter | None = None) -> SwagPosterior | CoefficientPosterior:
        """Return the posterior of what was collected, in the process that keeps the statistics.

        Args:
            adapter: What the posterior lies beside; by default the adapter as it stands in the model now.

        Raises:
            TooFewCollectionsError: Fewer than two vectors were collected.
            SwagError: This process does not keep the statistics, or it has a part only of the adapter that it was not given.
        """
        count = len(self.snapshots.steps)
        if not is_first() and not (self._is_over and count < 2):
            raise SwagError(
                "The statistics of a distributed run live in its first process until training ends. Ask there, or after train()."
            )
        if count < 2:
            raise TooFewCollectionsError(
                f"A posterior needs at least 2 collections, this run made {count}"
                + (f" and skipped {self.num_skipped} with weights that were not finite." if self.num_skipped else ".")
                + (f" {self._choice['acceptance']} kept no more of what it was proposed." if self._choice["acceptance"] else "")
            )
        if adapter is None and self.weights.is_sharded and count_processes() > 1:
            raise SwagError(
                "The adapter's weights are cut up over processes, and this one cannot put them together alone. Ask after train(); "
                "without a Trainer, call finish() in every process."
            )
        gaussian = self._gaussian or LowRankGaussian(
            self.moments.mean.cpu(), self.moments.variance.cpu(), self.moments.deviations.cpu()
        )
        return self._posterior(gaussian, adapter or self.weights.saved())

    def finish(self, *, into_model: bool = True) -> SwagPosterior | CoefficientPosterior | None:
        """Make the posterior known to every process and its mean the adapter; every process has to call this.

        The posterior takes over the memory of the statistics: nothing can be collected afterwards.

        Args:
            into_model: Put the mean into the model. Otherwise the posterior lies beside the adapter as it stands there.

        Returns:
            None where fewer than two vectors were collected.
        """
        count, self.num_skipped, rows = broadcast_document([self.moments.count, self.num_skipped, self.snapshots.as_rows()])
        self.snapshots, self._is_over = Snapshots.of_rows(rows), True
        if count < 2:
            return None
        if self._gaussian is None:
            size = self.layout.size
            parts = self.moments.release() if is_first() else (None, None, None)
            shapes = ((size,), (size,), (min(count, self.moments.rank), size))
            self._gaussian = LowRankGaussian(
                *(broadcast_tensor(part, shape=shape) for part, shape in zip(parts, shapes, strict=True))
            )
            self._pieces_of = {}
        if into_model:
            self.weights.write(self.mean)
        return self._posterior(self._gaussian, self.weights.saved())

    def statistics(self) -> dict[str, float]:
        """Return the diagnostics of the trajectory so far, see `trajectory_statistics`; empty in processes other than the first."""
        return trajectory_statistics(self.moments.deviations, count=self.moments.count) if is_first() else {}

    def restart(self) -> None:
        """Forget what was collected."""
        self.moments.restart()
        self.snapshots = Snapshots()

    def save(self, path: Path) -> str:
        """Write the moments to a file, whole or not at all, and return its content digest."""
        self._refuse_after_the_end()
        metadata = {
            "num_skipped": self.num_skipped,
            "score": self.score,
            "problem_type": self._task_metadata()["problem_type"],
            "snapshots": self.snapshots.as_rows(),
        }
        return write_moments(path, self.layout, self.moments, metadata)

    def restore(self, path: Path, *, digest: str) -> None:
        """Continue from a file that `save` wrote; the next collection does what it would have done in the first process.

        Args:
            path: The file.
            digest: What `save` returned.

        Raises:
            PosteriorFormatError: The file is damaged or its digest is another one.
            AdapterMismatchError: The moments are of another adapter, or of another rank.
        """
        moments, metadata = read_moments(path, digest=digest, layout=self.layout, rank=self.moments.rank, device=self._device)
        try:
            num_skipped, snapshots = int(metadata["num_skipped"]), Snapshots.of_rows(metadata["snapshots"])
            score = None if metadata["score"] is None else float(metadata["score"])
            problem_type = None if metadata["problem_type"] is None else str(metadata["problem_type"])
        except (KeyError, TypeError, ValueError) as error:
            raise PosteriorFormatError(f"{str(path)!r} does not hold the moments of a collection: {error!r}.") from error
        self.moments, self.num_skipped, self.snapshots = moments, num_skipped, snapshots
        self.score, self._problem_type, self._pieces_of, self._is_new = score, problem_type, {}, False

    def _posterior(self, gaussian: LowRankGaussian, adapter: SavedAdapter) -> SwagPosterior | CoefficientPosterior:
        taken = self.snapshots
        collection = SwagRecord(
            **self._choice,
            num_collected=len(taken.steps),
            num_skipped=self.num_skipped,
            first_step=taken.steps[0],
            last_step=taken.steps[-1],
            first_learning_rate=taken.learning_rates[0],
            last_learning_rate=taken.learning_rates[-1],
            steps=list(taken.steps),
            learning_rates=list(taken.learning_rates),
            deviation_norms=list(taken.deviation_norms),
            diagnostics=trajectory_statistics(gaussian.deviations, count=len(taken.steps)),
        )
        record = PosteriorRecord(
            base_model=adapter.base_model,
            adapter_digest=adapter.digest,
            adapter_settings=adapter.settings,
            versions=library_versions(),
            **self._base,
            **self._task_metadata(),
        )
        adapter = replace(adapter, initial=self._initial, is_reproducible=not needs_lift(adapter.config))
        posterior = SwagPosterior(self.layout, gaussian, record, collection, adapter)
        return posterior if self._map is None else CoefficientPosterior.of(posterior, self._map)

    def _task_metadata(self) -> dict[str, Any]:
        return task_metadata(self.weights, problem_type=self._problem_type)

    def _refuse_after_the_end(self) -> None:
        if self._gaussian is not None:
            raise SwagError(
                "finish() has ended this collection and made its statistics the posterior. Begin with a new SwagCollector."
            )

    def _skip(self, row: Tensor, step: int) -> None:
        self.num_skipped += 1
        if self.num_skipped > 1:
            return
        key = next(key for key, weight in self.layout.unflatten(row).items() if not torch.isfinite(weight).all())
        logger.warning(
            "Step %d: %r has NaN or infinite values; this collection and further ones like it are skipped. They are counted in "
            "posterior.collection.num_skipped. Lower the learning rate or clip the gradients.",
            step,
            key,
        )
