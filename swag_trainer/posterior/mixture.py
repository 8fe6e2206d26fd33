"""PosteriorMixture: several posteriors of one adapter in one (MultiSWAG, MultiSWA, deep ensembles)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from swag_trainer.errors import PosteriorFormatError, SwagError
from swag_trainer.posterior import import_families, load_posterior
from swag_trainer.posterior.base import STORAGE, Draws, StorageDtype, WeightPosterior
from swag_trainer.posterior.design import Design, derived_seed
from swag_trainer.posterior.folder import member_folder
from swag_trainer.posterior.gaussian import checked_num_samples, checked_scale
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.members import MIXTURE, at_mean, checked_weights, describe_member, read_member, tensors_by_member
from swag_trainer.posterior.one_adapter import check_alike
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter

MAX_MEMBERS = 64
_TITLES = {"swag": "MultiSWAG", "point": "Ensemble"}


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorMixture(WeightPosterior):
    """A weighted mixture of posteriors of one adapter, which were trained apart from each other (Wilson and Izmailov 2020,
    arXiv:2002.08791).

    Of SWAG posteriors it is MultiSWAG, of SWAG posteriors at scale 0 MultiSWA, of point estimates a deep ensemble. All members have the
    same base model, adapter settings and classes, and one packed forward over the shared base answers for all of them.

    It is saved as one repository: swag_posterior.safetensors holds all members, the adapter beside it is the first member's mean, and
    the folders member-0, member-1, ... hold every member's mean for plain PEFT.

    Attributes:
        layout: Keys and shapes of the weights.
        members: The posteriors, with their own scales, and without tuning and features; the adapter of each is at its mean.
        member_weights: What each member counts; they sum to 1.
        record: Its scale is a factor of every member's own scale.
        adapter: The first member's.
    """

    kind: ClassVar[str] = MIXTURE

    layout: WeightLayout
    members: tuple[WeightPosterior, ...]
    member_weights: tuple[float, ...]
    record: PosteriorRecord
    adapter: SavedAdapter

    @classmethod
    def of(
        cls, posteriors: Iterable[WeightPosterior], weights: Literal["uniform"] | Sequence[float] = "uniform"
    ) -> PosteriorMixture:
        """Mix posteriors.

        What `swag_trainer.tune` chose for a member is left out, but for its scale: tune the mixture.

        Args:
            posteriors: At least two, of any families.
            weights: What each counts: positive numbers, which are divided by their sum.

        Raises:
            AdapterMismatchError: They differ in base model, adapter settings, classes, weights, or adapter weights that were not trained.
            SwagError: Fewer than two posteriors, a mixture among them, or weights that do not fit.
        """
        posteriors = list(posteriors)
        if not 2 <= len(posteriors) <= MAX_MEMBERS:
            raise SwagError(f"A mixture has 2 to {MAX_MEMBERS} members, got {len(posteriors)}.")
        for number, posterior in enumerate(posteriors):
            if isinstance(posterior, PosteriorMixture):
                raise SwagError(f"Member {number} is a mixture itself: pass its own members (mixture.members).")
            check_alike(posteriors[0], posterior, number)
        members = tuple(at_mean(posterior) for posterior in posteriors)
        first = members[0]
        scale = 0.0 if all(member.is_point for member in members) else 1.0
        record = replace(first.record, scale=scale, tuning=None, features=None)
        return cls(first.layout, members, checked_weights(weights, len(members)), record, first.adapter)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | Sequence[str | Path],
        *,
        weights: Literal["uniform"] | Sequence[float] = "uniform",
        **hub: Any,
    ) -> PosteriorMixture:
        """Read a mixture, or mix the posteriors of several folders or repositories.

        Args:
            pretrained_model_name_or_path: A folder or "user/name" that holds a mixture, or a list of such that hold the members.
            weights: As for `of`, where members are listed.
            hub: As for `WeightPosterior.from_pretrained`, whose errors are raised.
        """
        if isinstance(pretrained_model_name_or_path, (str, Path)):
            if weights != "uniform":
                raise SwagError(
                    "weights are for a list of members; mixture.with_member_weights(...) changes those of a mixture."
                )
            import_families()
            return super().from_pretrained(pretrained_model_name_or_path, **hub)
        return cls.of([load_posterior(name, **hub) for name in pretrained_model_name_or_path], weights)

    def with_member_weights(self, weights: Literal["uniform"] | Sequence[float]) -> PosteriorMixture:
        """Return the same members with other weights, as for `of`; what `swag_trainer.tune` found is dropped."""
        checked = checked_weights(weights, len(self.members))
        return replace(self, member_weights=checked, record=replace(self.record, tuning=None))

    @property
    def is_point(self) -> bool:
        """Whether every member is a point estimate: a deep ensemble."""
        return all(member.is_point for member in self.members)

    @property
    def title(self) -> str:
        """MultiSWAG, Ensemble (of point estimates), or Mixture."""
        kinds = {member.kind for member in self.members}
        return _TITLES.get(kinds.pop(), "Mixture") if len(kinds) == 1 else "Mixture"

    def mean_vector(self) -> Tensor:
        """Return the weighted mean of the members' means. Shape (P,), float32.

        The function at this mean is no good approximation of the mixture: members that were initialised apart lie far from each other.
        At scale 0 the mixture is predicted with by one pass for each member.
        """
        total = torch.zeros(self.layout.size, dtype=torch.float64)
        for member, weight in zip(self.members, self.member_weights, strict=True):
            total += weight * member.mean_vector()
        return total.float()

    def last_snapshot(self) -> Tensor | None:
        """Return the weights that the first member's training ended with. Shape (P,), float32; None where it does not have them."""
        return self.members[0].last_snapshot()

    @property
    def plain_weights(self) -> dict[str, Tensor]:
        """The first member's mean, which the adapter beside the mixture holds."""
        return self.members[0].mean

    def draw(self, num_samples: int, *, seed: int, scale: float | None = None, design: Design = "matched") -> Draws:
        """Draw weight vectors: as many from each member, which count by the member's weight.

        Args:
            num_samples: S, at least 1; rounded up to a multiple of the number of members.
            seed: Each member's draws depend on it and on the member's number.
            scale: Factor of every member's own scale; None for the mixture's own, 0 for the members' means.
            design: Of each member's draws.

        Returns:
            Vectors of shape (S, P), one member after the other. A set is dependent as a whole.

        Warns:
            UserWarning: S was rounded up.

        Raises:
            SwagError: ``num_samples`` or ``scale`` is out of range.
        """
        factor = self.scale if scale is None else checked_scale(scale)
        count = -(-checked_num_samples(num_samples) // len(self.members))
        if num_samples > 1 and num_samples % len(self.members):
            warnings.warn(
                f"num_samples={num_samples} is no multiple of the {len(self.members)} members of the mixture: {count * len(self.members)} "
                "draws are made, as many from each.",
                UserWarning,
                stacklevel=2,
            )
        vectors = [
            member.draw(count, seed=derived_seed(seed, f"member {number}"), scale=factor * member.scale, design=design).vectors
            for number, member in enumerate(self.members)
        ]
        weights = torch.tensor(self.member_weights, dtype=torch.float64)
        return Draws(
            torch.cat(vectors),
            (weights / count).repeat_interleave(count),
            block_size=count * len(self.members),
            members=torch.arange(len(self.members)).repeat_interleave(count),
        )

    def stored_as(self, dtype: StorageDtype) -> Self:
        """Return the mixture as a file of this precision gives it back, see `WeightPosterior.stored_as`."""
        return replace(self, members=tuple(member.stored_as(dtype) for member in self.members))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of every member, ``member-<number>/<name>``."""
        return {
            f"{folder}/{name}": tensor
            for folder, member in self._by_folder().items()
            for name, tensor in member.tensors().items()
        }

    def metadata(self) -> dict[str, Any]:
        """Return weights, and kind, scale and metadata of every member, as JSON values."""
        described = {folder: describe_member(member) for folder, member in self._by_folder().items()}
        stored = {folder: storage for folder, (_, storage) in described.items() if storage is not None}
        members = [description for description, _ in described.values()]
        return {"weights": list(self.member_weights), "members": members} | ({STORAGE: stored} if stored else {})

    def summary(self) -> dict[str, Any]:
        """Return number, weights and collected snapshots of the members."""
        collected = [member.summary().get("num_collected") for member in self.members]
        known = {"num_collected": sum(collected)} if all(isinstance(number, int) for number in collected) else {}
        return {"members": len(self.members), "member_weights": list(self.member_weights)} | known

    def with_base_model(self, name: str) -> Self:
        """Return the same mixture whose files, those of its members too, name another base model."""
        return replace(super().with_base_model(name), members=tuple(member.with_base_model(name) for member in self.members))

    def plain_adapters(self) -> dict[str, SavedAdapter]:
        """Return every member's adapter, for plain PEFT, by its folder."""
        return {folder: member.adapter for folder, member in self._by_folder().items()}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        record: PosteriorRecord,
        adapter: SavedAdapter,
        metadata: Mapping[str, Any],
        *,
        where: str,
    ) -> Self:
        """Undo `tensors` and `metadata`; nothing about them is trusted.

        Raises:
            PosteriorFormatError: No mixture can have them.
        """
        described, weights, stored = (metadata.get(name) for name in ("members", "weights", STORAGE))
        stored = {} if stored is None else stored
        if not isinstance(described, list) or not 2 <= len(described) <= MAX_MEMBERS or not isinstance(stored, dict):
            raise PosteriorFormatError(f"{where} should describe 2 to {MAX_MEMBERS} members of a mixture.")
        folders, owners = map(member_folder, range(len(described))), f"none of its {len(described)} members"
        parts = tensors_by_member(tensors, folders, owners=owners, where=where)
        if not set(stored) <= set(parts) or not set(metadata) <= {"members", "weights", STORAGE}:
            raise PosteriorFormatError(f"{where} states something of a mixture that this version does not know.")
        members = tuple(
            read_member(description, own, record, adapter, stored.get(folder), where=f"{where}, {folder}")
            for description, (folder, own) in zip(described, parts.items(), strict=True)
        )
        layout = members[0].layout
        if any(member.layout != layout for member in members):
            raise PosteriorFormatError(f"{where} has members with other weights than the first.")
        try:
            checked = checked_weights(weights, len(members))
        except SwagError as error:
            raise PosteriorFormatError(f"{where}: {error}") from error
        return cls(layout, members, checked, record, adapter)

    def _by_folder(self) -> dict[str, WeightPosterior]:
        return {member_folder(number): member for number, member in enumerate(self.members)}

    def __repr__(self) -> str:
        """Sizes, never tensors."""
        weights = ", ".join(f"{weight:.3g}" for weight in self.member_weights)
        return (
            f"PosteriorMixture({self.title} of {len(self.members)} members, weights=[{weights}], P={self.layout.size}, "
            f"scale={self.scale:g}, base_model={self.adapter.base_model!r})"
        )
