"""SwagCollector: weights -> moments -> posterior. It needs no Trainer and can be driven by any training loop."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swag_trainer.adapters.base import modules_saved_nowhere
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.errors import AdapterMismatchError, PosteriorFormatError, SwagError, TooFewCollectionsError
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.moments import RunningMoments
from swag_trainer.posterior.provenance import Provenance
from swag_trainer.posterior.storage import read_file, write_file
from swag_trainer.posterior.swag import SwagPosterior

logger = logging.getLogger(__name__)

_BASE_CHANGING = ("olora", "pissa", "corda", "loftq", "lora_ga")


class SwagCollector:
    """Folds the weights of one adapter into running moments and makes a posterior of them.

    Args:
        model: A PEFT model, possibly wrapped.
        rank: K, how many deviations to keep: 0 for SWAG-diagonal, else at least 2.
        adapter_name: Which adapter; the active one by default.
        device: Where the statistics live, K + 3 vectors of P float32 numbers.

    Attributes:
        weights: The adapter's trained weights in the model.
        moments: The statistics so far.
        num_skipped: Collections left out because a weight was not finite.
        first, last: Step and learning rate of the first and of the last collection.

    Raises:
        SwagError: No PEFT model, nothing trains, or a part of the model would be random after loading.
    """

    def __init__(
        self, model: nn.Module, *, rank: int = 20, adapter_name: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.weights = AdapterWeights(model, adapter_name)
        homeless = modules_saved_nowhere(self.weights.model, self.weights.adapter_name)
        if homeless:
            heads = [*(name.rpartition(".")[2] for name in homeless), "classifier"]
            raise SwagError(
                f"The module {homeless[0]!r} is in neither the base model's checkpoint nor the adapter's file, so it is random at every "
                f"load and no saved adapter gives this model's answers. Train and save it: LoraConfig(modules_to_save={heads!r})."
            )
        self.layout = self.weights.layout
        self.moments = RunningMoments(self.layout.size, rank, device=device)
        self.num_skipped = 0
        self.first: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self._row = torch.empty(self.layout.size, device=device)
        self._pieces = list(self.layout.unflatten(self._row).values())
        self._fingerprint: int | None = None

    def collect(self, *, step: int, learning_rate: float | None = None) -> bool:
        """Fold the weights as they are now into the moments.

        Weights that are not finite are skipped, counted and reported once; weights that did not move since the last collection
        (an optimizer step that loss scaling skipped, say) are not counted twice.

        Args:
            step: Number of the optimizer step, for the record.
            learning_rate: The rate at this step, for the record.

        Returns:
            Whether a vector was added.

        Raises:
            AdapterMismatchError: The adapter was changed since the last collection.
        """
        row = self._row
        self.layout.fill(self._pieces, self.weights.read())
        # The sum is finite unless a weight is not, or unless weights are so large that their sum overflows.
        if not bool(torch.isfinite(row.sum())) and not bool(torch.isfinite(row).all()):
            self._skip(row, step)
            return False
        fingerprint = int(row.view(torch.int32).sum(dtype=torch.int64))
        if fingerprint == self._fingerprint:
            return False
        self._fingerprint = fingerprint
        self.moments.fold(row)
        self.last = {"step": step, "learning_rate": learning_rate}
        self.first = self.first or self.last
        return True

    def posterior(self, *, schedule: str = "") -> SwagPosterior:
        """Return the posterior of what was collected, beside the adapter as it stands in the model now.

        Raises:
            TooFewCollectionsError: Fewer than two vectors were collected.
        """
        if self.moments.count < 2:
            raise TooFewCollectionsError(
                f"A posterior needs at least 2 collections, this run made {self.moments.count}"
                + (f" and skipped {self.num_skipped} with weights that were not finite." if self.num_skipped else ".")
            )
        adapter = self.weights.saved()
        gaussian = LowRankGaussian(self.moments.mean.cpu(), self.moments.variance.cpu(), self.moments.deviations.cpu())
        provenance = Provenance(
            num_collected=self.moments.count,
            num_skipped=self.num_skipped,
            schedule=schedule,
            first_step=self.first["step"],
            last_step=self.last["step"],
            first_learning_rate=self.first["learning_rate"],
            last_learning_rate=self.last["learning_rate"],
            base_model=adapter.base_model,
            adapter_digest=adapter.digest,
            versions={name: version(name) for name in ("swag_trainer", "transformers", "peft", "torch")},
            **_model_facts(self.weights),
        )
        return SwagPosterior(self.layout, gaussian, provenance, adapter)

    def mean(self) -> dict[str, Tensor]:
        """Return the mean of the collected weights, ``{key: (*shape)}``."""
        return self.layout.unflatten(self.moments.mean)

    def save(self, path: Path) -> str:
        """Write the moments to a file, whole or not at all, and return its content digest."""
        document = {
            "keys": list(self.layout.keys),
            "shapes": [list(shape) for shape in self.layout.shapes],
            "rank": self.moments.rank,
            "count": self.moments.count,
            "num_skipped": self.num_skipped,
            "first": self.first,
            "last": self.last,
            "fingerprint": self._fingerprint,
        }
        return write_file(path, self.moments.tensors(), document)

    def restore(self, path: Path, *, digest: str) -> None:
        """Continue from a file that `save` wrote; the next collection does what it would have done in the first process.

        Args:
            path: The file.
            digest: What `save` returned.

        Raises:
            PosteriorFormatError: The file is damaged or its digest is another one.
            AdapterMismatchError: The moments are of another adapter, or of another rank.
        """
        tensors, document, found = read_file(path)
        if found != digest:
            raise PosteriorFormatError(
                f"{str(path)!r} has the digest {found[:12]}, the checkpoint's record says {digest[:12]}."
            )
        try:
            layout = WeightLayout(tuple(document["keys"]), tuple(tuple(shape) for shape in document["shapes"]))
            count, rank = int(document["count"]), int(document["rank"])
            difference = layout.difference(self.layout, ours="The checkpoint", theirs="The model")
            if difference:
                raise AdapterMismatchError(f"The moments in {str(path)!r} are of another adapter. {difference}")
            if rank != self.moments.rank:
                raise AdapterMismatchError(
                    f"The moments in {str(path)!r} have rank={rank}, this run has rank={self.moments.rank}."
                )
            self.moments = RunningMoments.from_tensors(tensors, count=count, rank=rank, device=self._row.device)
            self.num_skipped, self._fingerprint = document["num_skipped"], document["fingerprint"]
            self.first, self.last = document["first"], document["last"]
        except (KeyError, TypeError, ValueError) as error:
            raise PosteriorFormatError(f"{str(path)!r} holds no moments of a collection: {error!r}.") from error

    def _skip(self, row: Tensor, step: int) -> None:
        self.num_skipped += 1
        if self.num_skipped > 1:
            return
        key = next(key for key, weight in self.layout.unflatten(row).items() if not torch.isfinite(weight).all())
        logger.warning(
            "Step %d: %r has NaN or infinite values; this collection and further ones like it are skipped. They are counted in "
            "posterior.provenance.num_skipped. Lower the learning rate or clip the gradients.",
            step,
            key,
        )


def _model_facts(weights: AdapterWeights) -> dict[str, Any]:
    config = getattr(weights.model.get_base_model(), "config", None)
    id2label = getattr(config, "id2label", None) or {}
    initialisation = getattr(weights.model.peft_config[weights.adapter_name], "init_lora_weights", None)
    changes_base = isinstance(initialisation, str) and initialisation.startswith(_BASE_CHANGING)
    return {
        "base_revision": getattr(config, "_commit_hash", None),
        "labels": [str(id2label[index]) for index in sorted(id2label)] or None,
        "problem_type": getattr(config, "problem_type", None),
        "initialisation": initialisation if changes_base else None,
    }
