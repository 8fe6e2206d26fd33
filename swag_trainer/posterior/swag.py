"""SwagPosterior: the Gaussian over an adapter's weights, where it comes from, and the adapter it lies beside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitInfo
from torch import Tensor, nn

from swag_trainer.errors import SwagError
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.folder import PosteriorParts, check_pair, find_folder, read_folder, write_folder
from swag_trainer.posterior.gaussian import LowRankGaussian, checked_scale
from swag_trainer.posterior.hub import upload
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.plain_lora import InitialLora, lift, needs_lift, plain_lora_config
from swag_trainer.posterior.provenance import Provenance
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.saved_checkpoints import collect_checkpoints
from swag_trainer.posterior.tuning import Tuning


@dataclass(frozen=True, eq=False, repr=False)
class SwagPosterior:
    """What SWAG believes about the weights of one adapter: a Gaussian, eq. (1) of Maddox et al. 2019, arXiv:1902.02476.

    Made by `SwagCallback` (``callback.posterior``), read with `from_pretrained`, or made of saved adapters with `from_checkpoints`. A value: nothing changes it in place.

    Attributes:
        layout: Keys and shapes of the weights.
        gaussian: The distribution over flat vectors of P numbers.
        provenance: How it was collected and what it belongs to.
        adapter: The adapter it lies beside, as PEFT saves it; after training that adapter holds the posterior mean.
        initial: A0 and B0 of an adapter whose initialisation changed the base weights (OLoRA, PiSSA, ...), for `to_plain_lora`.
    """

    layout: WeightLayout
    gaussian: LowRankGaussian
    provenance: Provenance
    adapter: SavedAdapter
    initial: InitialLora | None = None

    @property
    def mean(self) -> dict[str, Tensor]:
        """Mean of every weight, ``{key: (*shape)}``, float32: the SWA solution."""
        return self.layout.unflatten(self.gaussian.mean)

    @property
    def variance(self) -> dict[str, Tensor]:
        """Diagonal variance of the collected vectors, ``{key: (*shape)}``, float32, before the one-half and the scale."""
        return self.layout.unflatten(self.gaussian.variance)

    @property
    def deviations(self) -> dict[str, Tensor]:
        """The K deviations that were kept, oldest first, ``{key: (K, *shape)}``, float32."""
        return self.layout.unflatten(self.gaussian.deviations)

    @property
    def num_collected(self) -> int:
        """How many weight vectors went into the moments."""
        return self.provenance.num_collected

    @property
    def rank(self) -> int:
        """K, the deviations that were kept; 0 makes it SWAG-diagonal."""
        return self.gaussian.rank

    @property
    def scale(self) -> float:
        """Factor of the covariance that draws use unless told otherwise; 1 is the paper's covariance."""
        return self.provenance.scale

    @property
    def tuning(self) -> Tuning | None:
        """What `tune` chose and calibrated on held-out data; None for a posterior that was not tuned."""
        return self.provenance.tuning

    @property
    def temperature(self) -> float:
        """What each draw's logits are divided by before the softmax, at the posterior's own scale; 1 where it was not tuned."""
        return 1.0 if self.tuning is None else self.tuning.temperature

    def with_scale(self, scale: float) -> SwagPosterior:
        """Return the same posterior with another default scale.

        What `tune` found out belongs to the scale it chose: temperature, thresholds and quantiles are dropped, also for an equal scale.

        Raises:
            SwagError: ``scale`` is negative or not finite.
        """
        return replace(self, provenance=replace(self.provenance, scale=checked_scale(scale), tuning=None))

    def tune(self, model: nn.Module, dataset: Any, **settings: Any) -> SwagPosterior:
        """Choose scale and temperature on held-out data, and calibrate when to abstain and what to put into a set of labels.

        Returns a new posterior whose `tuning` says what was found; saved, the pipeline answers with it. Arguments, errors and warnings are
        those of `swag_trainer.evaluation.tuning.tune`.
        """
        # The one arrow that points up, on purpose: tuning needs predictions, and people look for it on the posterior.
        from swag_trainer.evaluation.tuning import tune

        return tune(model, self, dataset, **settings)

    def to_plain_lora(self) -> SwagPosterior:
        """Return the same posterior over plain LoRA of twice the rank, for an adapter whose initialisation changed the base weights.

        OLoRA, PiSSA, CorDA and LoRA-GA train against W - s B0 A0, which is in memory only. The plain LoRA gives the same answers on the
        base as it is on disk, see `swag_trainer.posterior.plain_lora.lift`; heads pass through.

        Raises:
            SwagError: The adapter did not change its base, its initial weights are not known (its training went on from a loaded
                adapter), or plain LoRA cannot express it.
        """
        plain_lora_config(self.adapter.config)
        if self.initial is None:
            raise SwagError(
                f"The posterior of this {self.provenance.initialisation!r} adapter does not hold the adapter's initial weights, without "
                "which it cannot become plain LoRA: SwagCallback saw it only after training had begun."
            )
        layout, gaussian, adapter = lift(self.layout, self.gaussian, self.adapter, self.initial)
        story = f"{self.provenance.initialisation}, exported as plain LoRA"
        facts = {"initialisation": story, "base_fingerprint": dict(self.initial.pristine), "adapter_digest": adapter.digest}
        return SwagPosterior(layout, gaussian, replace(self.provenance, **facts), adapter)

    def sample(
        self, num_samples: int, *, seed: int = 0, scale: float | None = None, design: Design = "matched"
    ) -> dict[str, Tensor]:
        """Draw weights.

        Args:
            num_samples: S, at least 1.
            seed: The draws depend on this alone: not on the global random state, the device or the number of threads.
            scale: Factor of the covariance; None for the posterior's own, 0 for the mean (SWA).
            design: "matched" makes the S draws cancel each other's linear error, see `swag_trainer.posterior.design`;
                "iid" makes them independent.

        Returns:
            ``{key: (S, *shape)}``, float32, on the CPU.

        Raises:
            SwagError: ``num_samples`` or ``scale`` is out of range.
        """
        return self.layout.unflatten(self.sample_flat(num_samples, seed=seed, scale=scale, design=design))

    def sample_flat(self, num_samples: int, *, seed: int = 0, scale: float | None = None, design: Design = "matched") -> Tensor:
        """Draw weights as `sample` does, as one matrix. Shape (S, P); ``layout.unflatten`` cuts it into weights."""
        return self.gaussian.sample(num_samples, seed=seed, scale=self.scale if scale is None else scale, design=design)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write swag_posterior.safetensors and the adapter it belongs to into a folder, replacing what is there.

        Plain PEFT opens the folder as an adapter like any other. Each file is written whole or not at all, and where one
        does not fit on the disk none is replaced.

        An adapter whose initialisation changed the base in a way that no other process repeats (CorDA, LoRA-GA, ``pissa_niter_N``)
        would give other answers from its file; its posterior is saved as `to_plain_lora`.
        """
        if needs_lift(self.adapter.config):
            self.to_plain_lora().save_pretrained(save_directory)
            return
        parts = PosteriorParts(self.layout, self.gaussian, self.provenance, self.adapter, self.initial)
        write_folder(Path(save_directory), parts)

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
    ) -> SwagPosterior:
        """Read a posterior and its adapter from a folder or a repository on the Hub.

        Args:
            pretrained_model_name_or_path: A folder, or "user/name" on the Hub.
            revision: Branch, tag or commit on the Hub.
            token: Access token, as everywhere in huggingface_hub; so are the next three.
            ignore_mismatched_adapter: Accept an adapter or a base model other than the recorded one. Its weights must still have
                the posterior's names and shapes. For an adapter that was re-saved in another precision, or a base that moved.

        Raises:
            PosteriorNotFoundError: No posterior there, or not to be reached.
            PosteriorFormatError: The file is damaged, of a newer format, or its values cannot be those of a posterior.
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
        parts = read_folder(folder)
        check_pair(parts, str(pretrained_model_name_or_path), ignore_digest=ignore_mismatched_adapter)
        return cls(*parts)

    @classmethod
    def from_checkpoints(
        cls,
        checkpoints: str | Path | Iterable[str | Path],
        *,
        rank: int = 20,
        revisions: Sequence[str] | None = None,
        final_weights: Literal["mean", "trained"] = "mean",
        adapter_name: str | None = None,
        labels: Sequence[str] | None = None,
        problem_type: str | None = None,
        pad_token_id: int | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> SwagPosterior:
        """Make a posterior of adapters that were saved already, without training.

        It is the posterior that `SwagCallback` would have collected at these steps. The callback also holds the learning rate while
        it collects; checkpoints of a run whose rate fell to zero say more about its schedule than about the weights, so name those
        of the part you mean. Weights that are bit for bit the same in every checkpoint were not trained: they are no part of the
        posterior and stay in the adapter as they are.

        Args:
            checkpoints: A list of folders, oldest first; one folder that holds folders called checkpoint-N, all of which are taken
                in the order of N; or, with ``revisions``, "user/name" on the Hub. Only adapter_config.json,
                adapter_model.safetensors and, in folders, trainer_state.json (step and learning rate) are read.
            rank: K, how many deviations to keep. 0 gives SWAG-diagonal, 1 is no covariance and refused.
            revisions: Branches, tags or commits of the repository that each hold the adapter, oldest first.
            final_weights: What the posterior's adapter holds: the posterior "mean", or what the last checkpoint does ("trained").
            adapter_name: Which adapter, where it is not PEFT's "default" and so lies in a folder of its own.
            labels: Names of the classes in the order of the logits; an adapter's files do not say them, and a pipeline shows them.
            problem_type: As in the base model's config, where that is not transformers' own rule for the number of labels.
            pad_token_id: Number of the padding token, for a decoder whose base model's config has none.
            token: Access token, as everywhere in huggingface_hub; so are the next two.

        Raises:
            TooFewCollectionsError: Fewer than two adapters, or fewer than two that differ; equal ones are counted once.
            PosteriorNotFoundError: A folder, a repository or a revision does not exist or has no such adapter.
            PosteriorFormatError: A file is damaged, or a weight is not finite.
            AdapterMismatchError: Another base model, setting, name, shape or dtype of weights than in the first checkpoint.
            SwagError: ``rank`` or ``final_weights`` is out of range, ``revisions`` came with folders, weights that are whole numbers
                were trained, or a file changed while it was read.
        """
        return cls(
            *collect_checkpoints(
                checkpoints,
                rank=rank,
                revisions=revisions,
                final_weights=final_weights,
                adapter_name=adapter_name,
                labels=labels,
                problem_type=problem_type,
                pad_token_id=pad_token_id,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload SWAG posterior",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        card: str | None = None,
    ) -> CommitInfo:
        """Put adapter and posterior (and the card, if there is one) on the Hub in one commit.

        Args:
            repo_id: "user/name"; created if needed.
            commit_message: First line of the commit.
            private: Visibility of a repository that is created.
            token: Access token.
            revision: Branch to commit to; created if needed.
            create_pr: Open a pull request instead.
            card: Text of README.md; the repository's own stays if None.

        Returns:
            The commit; ``.oid`` pins it: ``SwagPosterior.from_pretrained(repo_id, revision=commit.oid)``.

        Raises:
            SwagError: Nothing was committed.
        """
        with tempfile.TemporaryDirectory(prefix="swag_trainer-") as folder:
            self.save_pretrained(folder)
            files: dict[str, Path | bytes] = {path.name: path for path in sorted(Path(folder).iterdir())}
            if card is not None:
                files["README.md"] = card.encode()
            return upload(
                files,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )

    def __deepcopy__(self, memo: dict) -> SwagPosterior:
        """A value needs no copy; a model that carries its posterior is copied to predict."""
        return self

    def __repr__(self) -> str:
        """Sizes, never tensors."""
        return (
            f"SwagPosterior({len(self.layout.keys)} weights, P={self.layout.size}, num_collected={self.num_collected}, "
            f"rank={self.rank}, scale={self.scale:g}, base_model={self.adapter.base_model!r})"
        )
