"""The interface of a posterior: what can be drawn from, saved, pushed and loaded, whatever its family.

A new family is one file: a frozen dataclass that inherits from `WeightPosterior`, names its ``kind`` and has the four methods that are
abstract here. Predictor, pipeline, storage, Hub and model card know nothing else of it.
"""

from __future__ import annotations

import logging
import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, get_args, runtime_checkable

import torch
from huggingface_hub import CommitInfo
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, SwagError, shortened
from swag_trainer.hub import upload
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.features import FeatureDistribution
from swag_trainer.posterior.folder import POSTERIOR_FILE, Contents, check_pair, find_folder, read_folder, write_folder
from swag_trainer.posterior.gaussian import checked_scale
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.storage import content_digest
from swag_trainer.posterior.tuning import Center, Tuning

logger = logging.getLogger(__name__)

KINDS: dict[str, type[WeightPosterior]] = {}
StorageDtype = Literal["bfloat16", "float32"]
STORAGE = "storage"


class Draws(NamedTuple):
    """Weight vectors drawn from a posterior.

    Attributes:
        vectors: Shape (S, P), float32, on the CPU.
        weights: What each draw counts in an average. Shape (S,), sums to 1; None where all count the same.
        block_size: How many consecutive draws depend on each other (a matched set); 1 where all are independent.
        members: Of a mixture, the number of the member that each draw comes from. Shape (S,), int64; None for a single posterior.
    """

    vectors: Tensor
    weights: Tensor | None = None
    block_size: int = 1
    members: Tensor | None = None


class WeightPosterior(ABC):
    """A distribution over the weights of one adapter. A value: nothing changes it in place.

    Attributes:
        kind: Name of the family; it stands in the file, by which `load_posterior` finds the class.
        layout: Keys and shapes of the weights.
        record: What the posterior belongs to and how it is to be used.
        adapter: The adapter it lies beside, as PEFT saves it.
    """

    kind: ClassVar[str]
    layout: WeightLayout
    record: PosteriorRecord
    adapter: SavedAdapter

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        taken = KINDS.setdefault(cls.kind, cls)
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SwagError(f"Two classes of posteriors have kind={cls.kind!r}: {taken.__qualname__} and {cls.__qualname__}.")
        KINDS[cls.kind] = cls  # a notebook's cell that is run again defines the class anew

    @abstractmethod
    def mean_vector(self) -> Tensor:
        """Return the mean of the weights. Shape (P,), float32."""

    @abstractmethod
    def draw(self, num_samples: int, *, seed: int, scale: float | None = None, design: Design = "matched") -> Draws:
        """Draw weight vectors.

        Args:
            num_samples: S, at least 1.
            seed: The draws depend on this alone: not on the global random state, the device or the number of threads.
            scale: Factor of the covariance; None for the posterior's own, 0 for the mean.
            design: How the draws relate to each other, see `swag_trainer.posterior.design`.

        Raises:
            SwagError: ``num_samples`` or ``scale`` is out of range.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to store in the posterior's file."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        record: PosteriorRecord,
        adapter: SavedAdapter,
        metadata: Mapping[str, Any],
        *,
        where: str,
    ) -> Self:
        """Undo `tensors` and `metadata`; everything is checked, nothing about the file is trusted.

        Args:
            tensors: What the posterior's file holds.
            record, adapter: To take over.
            metadata: What `metadata` returned.
            where: The file's name, for errors.

        Raises:
            PosteriorFormatError: No posterior of this kind can have these tensors or this metadata.
        """

    def metadata(self) -> dict[str, Any]:
        """Return what the family itself has to record, as JSON values.

        What it states under "storage" describes the precision of a file and does not count for `digest`.
        """
        return {}

    def stored_as(self, dtype: StorageDtype) -> Self:
        """Return the posterior as a file of this precision gives it back. A family that knows one precision returns itself.

        Args:
            dtype: "bfloat16" for small files, "float32" for exact ones.
        """
        return self

    def summary(self) -> dict[str, Any]:
        """Return what a model card states of how the posterior was made, by name; numbers and texts of `metadata` unless overridden."""
        return {name: value for name, value in self.metadata().items() if isinstance(value, (str, int, float))}

    @property
    def title(self) -> str:
        """Name of the family in tables, plots and model cards, such as "SWAG"."""
        return self.kind

    @property
    def is_point(self) -> bool:
        """Whether no noise is ever drawn, at whatever scale: a point estimate, or an ensemble of such."""
        return False

    def plain_adapters(self) -> dict[str, SavedAdapter]:
        """Return further adapters to write beside the first, for plain PEFT, by the names of their folders."""
        return {}

    def last_snapshot(self) -> Tensor | None:
        """Return the weights that training ended with. Shape (P,), float32; None where the posterior does not have them."""
        return None

    @property
    def centers(self) -> tuple[Center, ...]:
        """Names of the centres that the posterior has; "mean" is one of them."""
        return ("mean",)

    def center(self, name: Center) -> Tensor:
        """Return a weight vector that draws can be centred on, see `Sampling.center`. Shape (P,), float32.

        Raises:
            SwagError: The posterior does not have that centre.
        """
        if name != "mean":
            raise SwagError(f"A posterior of kind {self.kind!r} has the centres {self.centers}, got {name!r}.")
        return self.mean_vector()

    @property
    def total_variance(self) -> float | None:
        """Trace of the covariance at scale 1; None for a family that does not know it."""
        return None

    def relative_energy(self, scale: float | None = None) -> float | None:
        """Return the variance of the draws at a scale over the squared length of the mean, which is free of units.

        Args:
            scale: Factor of the covariance; None for the posterior's own.

        Returns:
            scale * `total_variance` / |mean|^2; infinity where the mean is zero, None where the variance is not known.

        Raises:
            SwagError: ``scale`` is out of range.
        """
        total = self.total_variance
        if total is None:
            return None
        scale = self.scale if scale is None else checked_scale(scale)
        length = float(self.mean_vector().double().square().sum())
        return scale * total / length if length else math.inf

    def reparametrised(
        self,
        layout: WeightLayout,
        record: PosteriorRecord,
        adapter: SavedAdapter,
        *,
        position: Callable[[Tensor], Tensor],
        displacement: Callable[[Tensor], Tensor],
    ) -> Self:
        """Carry the posterior over to other weights that compute the same function.

        Args:
            layout, record, adapter: Of the new weights.
            position: Maps weight vectors. Shapes (..., P) to (..., P').
            displacement: Maps differences of weight vectors, and variances. Shapes (..., P) to (..., P').

        Raises:
            SwagError: This family cannot be carried over.
        """
        raise SwagError(f"A posterior of kind {self.kind!r} cannot be carried over to other weights.")

    @property
    def mean(self) -> dict[str, Tensor]:
        """Mean of every weight, ``{key: (*shape)}``, float32."""
        return self.layout.unflatten(self.mean_vector())

    @property
    def plain_weights(self) -> dict[str, Tensor]:
        """Weights of the adapter beside it where it was not left as trained: the mean, ``{key: (*shape)}``, float32."""
        return self.mean

    @property
    def adapter_holds_mean(self) -> bool:
        """Whether the adapter beside it has these weights: not for ``SwagCallback(final_weights="trained")``."""
        saved = self.adapter.tensors
        return all(
            key in saved and weight.to(saved[key].dtype).equal(saved[key].cpu()) for key, weight in self.plain_weights.items()
        )

    @property
    def scale(self) -> float:
        """Factor of the covariance that draws use by default; 1 is the family's own covariance."""
        return self.record.scale

    @property
    def tuning(self) -> Tuning | None:
        """What `swag_trainer.tune` chose and calibrated on held-out data; None for a posterior that was not tuned."""
        return self.record.tuning

    @property
    def temperature(self) -> float:
        """What each draw's logits are divided by before the softmax, at what was tuned with it; 1 where the posterior was not tuned."""
        return 1.0 if self.tuning is None else self.tuning.temperature

    @property
    def features(self) -> FeatureDistribution | None:
        """Class means and covariance of the features at the mean weights, which give the OOD score; None where they were not fitted."""
        return self.record.features

    def with_base_model(self, name: str) -> Self:
        """Return the same posterior whose files name another base model: its id on the Hub in the place of a folder, for instance."""
        record = replace(self.record, base_model=name, base_revision=None)
        return replace(self, record=record, adapter=self.adapter.with_base_model(name))

    def with_features(self, features: FeatureDistribution | None) -> Self:
        """Return the same posterior with other features, or with none. They must be those at its mean."""
        return replace(self, record=replace(self.record, features=features))

    def with_scale(self, scale: float) -> Self:
        """Return the same posterior with another default scale.

        What `swag_trainer.tune` found belongs to the scale it chose: temperature, thresholds and quantiles are dropped, also for an equal scale.

        Raises:
            SwagError: ``scale`` is negative or not finite.
        """
        return replace(self, record=replace(self.record, scale=checked_scale(scale), tuning=None))

    def with_tuning(self, tuning: Tuning, *, scale: float) -> Self:
        """Return the same posterior with what was chosen and calibrated at a scale, which becomes the default."""
        return replace(self, record=replace(self.record, scale=checked_scale(scale), tuning=tuning))

    def sample(
        self, num_samples: int, *, seed: int = 0, scale: float | None = None, design: Design = "matched"
    ) -> dict[str, Tensor]:
        """Draw weights, as `draw` does, whose ``weights`` say what each draw counts where they do not count alike (a mixture).

        Returns:
            ``{key: (S, *shape)}``, float32, on the CPU.

        Raises:
            SwagError: ``num_samples`` or ``scale`` is out of range.
        """
        return self.layout.unflatten(self.draw(num_samples, seed=seed, scale=scale, design=design).vectors)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digits that change with kind, mean, metadata, scale, tuning and features; saving keeps them in any dtype."""
        tuning = None if self.tuning is None else asdict(self.tuning)
        metadata = {name: value for name, value in self.metadata().items() if name != STORAGE}
        features = {} if self.features is None else self.features.tensors()
        return content_digest(
            {"mean": self.mean_vector(), **features}, {"posterior": [self.kind, metadata, self.scale, tuning]}
        )

    def save_pretrained(self, save_directory: str | Path, *, dtype: StorageDtype = "bfloat16") -> None:
        """Write swag_posterior.safetensors and the adapter it belongs to into a folder, replacing what is there.

        Plain PEFT opens the folder as an adapter like any other. Each file is written whole or not at all, and where one
        does not fit on the disk none is replaced.

        Args:
            save_directory: The folder; made if needed.
            dtype: Precision of the covariance, see `stored_as`; the mean is always in float32. On the posterior of `make demo` at
                scale 1, bfloat16 moved averaged probabilities by up to 1.9e-4; a file in float32 is about twice as large and exact.

        Raises:
            SwagError: The adapter would give other predictions from its file than it does here, or an unknown dtype.
        """
        if dtype not in get_args(StorageDtype):
            raise SwagError(f"dtype must be one of {get_args(StorageDtype)}, got {dtype!r}.")
        stored = self.stored_as(dtype)
        contents = Contents(self.kind, self.record, stored.metadata(), stored.tensors(), self.adapter, self.plain_adapters())
        write_folder(Path(save_directory), contents)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        ignore_mismatched_adapter: bool = False,
    ) -> Self:
        """Read a posterior and its adapter from a folder or a repository on the Hub.

        Args:
            pretrained_model_name_or_path: A folder, or "user/name" on the Hub.
            revision: Branch, tag or commit on the Hub.
            token: Access token, as everywhere in huggingface_hub; so are the next three.
            ignore_mismatched_adapter: Accept an adapter or a base model other than the recorded one. Its weights must still have
                the posterior's names and shapes. For an adapter that was re-saved in another precision, or a base that moved.

        Raises:
            PosteriorNotFoundError: No posterior there, or not to be reached.
            PosteriorFormatError: The file is damaged, of a newer format, of another kind, or its values cannot be those of a posterior.
            AdapterMismatchError: The adapter beside it is not the one it was collected from.
        """
        folder = find_folder(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        contents, name = read_folder(folder), str(pretrained_model_name_or_path)
        kind = KINDS.get(contents.kind)
        if kind is None or not issubclass(kind, cls):
            raise PosteriorFormatError(
                f"{POSTERIOR_FILE} in {name!r} holds a posterior of kind {shortened(repr(contents.kind))}, {cls.__name__} reads kind "
                f"{getattr(cls, 'kind', sorted(KINDS))!r}. swag_trainer.load_posterior reads every kind that has been imported."
            )
        posterior = kind.from_tensors(
            contents.tensors, contents.record, contents.adapter, contents.metadata, where=repr(str(folder / POSTERIOR_FILE))
        )
        check_pair(posterior.layout, posterior.record, posterior.adapter, name, ignore_digest=ignore_mismatched_adapter)
        return posterior

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        card: str | None = None,
        dtype: StorageDtype = "bfloat16",
    ) -> CommitInfo:
        """Put adapter and posterior (and the card, if there is one) on the Hub in one commit.

        A base model that is named by a folder of this machine is nowhere for others: it is warned about. Push
        ``posterior.with_base_model("user/base")``.

        Args:
            repo_id: "user/name"; created if needed.
            commit_message: First line of the commit; default: "Upload SWAG posterior", with the posterior's own kind.
            private: Visibility of a repository that is created.
            token: Access token.
            revision: Branch to commit to; created if needed.
            create_pr: Open a pull request instead.
            card: Text of README.md; the repository's own stays if None.
            dtype: Precision of the covariance, as for `save_pretrained`.

        Returns:
            The commit; ``.oid`` pins it: ``load_posterior(repo_id, revision=commit.oid)``.

        Raises:
            SwagError: Nothing was committed.
        """
        kind = self.kind.upper() if self.kind == "swag" else self.kind
        if self.adapter.base_is_folder:
            logger.warning(
                "The adapter names its base model by the path %r, which nobody else has: what is pushed to %r loads only with base_model=... "
                'Push posterior.with_base_model("user/base"), with the id of the base model on the Hub.',
                self.adapter.base_model,
                repo_id,
            )
        with tempfile.TemporaryDirectory(prefix="swag_trainer-") as folder:
            self.save_pretrained(folder, dtype=dtype)
            saved = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
            files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in saved}
            if card is not None:
                files["README.md"] = card.encode()
            return upload(
                files,
                repo_id,
                commit_message=commit_message or f"Upload {kind} posterior",
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )

    def __deepcopy__(self, memo: dict) -> Self:
        """A value needs no copy; a model that carries its posterior is copied to predict."""
        return self


@runtime_checkable
class GaussianPosterior(Protocol):
    """A posterior that is one Gaussian with a covariance Sigma in closed form: what closed-form (linearised) predictions need."""

    def quadratic_form(self, scale: float, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
        """Return the function J -> J Sigma J^T at a scale: of J (C, P) on the device, (C, C) on the CPU, float64."""
