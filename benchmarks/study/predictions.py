"""Predictions of the study: logits of weight vectors on the stored trajectories, computed when first asked for and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from study.distillation import distil
from study.tasks import TaskData
from study.training import Optimization, Trajectory, build_model, train_run
from swag_trainer import Evenly
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.schedule import collection_steps
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.moments import RunningMoments
from swag_trainer.prediction.dropout import DropoutMasks, masked
from swag_trainer.tasks.sequence_classification import SequenceClassification

NUM_SAMPLES = 10
TAIL = 0.3


@dataclass(frozen=True)
class Draw:
    """What to predict with.

    Attributes:
        center: "map" (last step), "best" (best validation loss), "mean" (of the snapshots), "tail" (mean of the last `TAIL` of them), or
            "last" (snapshot).
        scale: Factor of the covariance; 0 for the center alone.
        dropout: Drop out, with other masks for each draw.
        start, snapshots, rank: What is collected: the part of the run to let pass, how many snapshots, and how many deviations are kept.
        collected: The learning-rate schedule of the run, see `SCHEDULES`.
        head_only: Noise for the head alone; all other weights stay at the center.
    """

    center: str
    scale: float = 0.0
    dropout: bool = False
    start: float = 0.3
    snapshots: int = 30
    rank: int = 20
    collected: str = "held"
    head_only: bool = False

    @property
    def num_samples(self) -> int:
        return NUM_SAMPLES if self.scale or self.dropout else 1

    @property
    def name(self) -> str:
        """A name for a file, without what is as usual."""
        usual = Draw(self.center)
        changed = [f"{key}-{value}" for key, value in vars(self).items() if value != getattr(usual, key)]
        return "_".join([self.center, *changed])


class Run:
    """One task and seed: its trajectories, and the logits that were predicted from them.

    Args:
        folder: Where the trajectories are; logits are kept in its folder "logits".
        data: The task's examples.
        base: The base model.
        steps: Optimizer steps of the run.
        seed: Of the draws and masks.
        frozen_layers, optimization: As in training.

    Attributes:
        others: Runs of the next seeds, which have the same test examples, and training and validation examples of their own.
    """

    def __init__(
        self,
        folder: Path,
        data: TaskData,
        base: Path | str,
        *,
        steps: int,
        seed: int,
        frozen_layers: int,
        optimization: Optimization = Optimization(),  # noqa: B008 - frozen
    ) -> None:
        self.folder, self.data, self.base, self.steps, self.seed = folder, data, base, steps, seed
        self.frozen_layers, self.optimization = frozen_layers, optimization
        self.others: list[Run] = []
        self.fitted: dict[tuple[Draw, float], tuple[float, float]] = {}

    def train(self, schedules: list[str]) -> None:
        """Train what is not there yet of the run, see `train_run`."""
        train_run(
            self.base,
            self.data,
            self.folder,
            steps=self.steps,
            seed=self.seed,
            optimization=self.optimization,
            frozen_layers=self.frozen_layers,
            schedules=schedules,
        )

    @cached_property
    def weights(self) -> AdapterWeights:
        """The adapter's weights in the model that predicts."""
        return self.new_weights()

    @cached_property
    def dropping(self) -> tuple[AdapterWeights, DropoutMasks]:
        """The same weights in a second model, with the masks that `MonteCarloPredictor` has for draws with dropout."""
        weights = self.new_weights()
        return weights, DropoutMasks(weights, task=SequenceClassification(), seed=self.seed)

    def new_weights(self) -> AdapterWeights:
        """Return the weights of a new model, as training begins with them."""
        model = build_model(self.base, self.data.num_labels, seed=self.seed, frozen_layers=self.frozen_layers)
        return AdapterWeights(model.eval())

    def trajectory(self, schedule: str) -> Trajectory:
        """Return a whole run: the common beginning and what followed at one learning-rate schedule."""
        beginning = Trajectory.load(self.folder / "beginning.safetensors")
        return beginning.followed_by(Trajectory.load(self.folder / f"{schedule}.safetensors"))

    def snapshots(self, draw: Draw) -> Tensor:
        """Return the snapshots that are collected, at the kept steps nearest to those of the schedule. Shape (n, P)."""
        run = self.trajectory(draw.collected)
        schedule = Evenly(start=draw.start, snapshots=draw.snapshots)
        due = collection_steps(schedule, max_steps=self.steps, steps_per_epoch=None)
        return torch.stack([run.at(step) for step in dict.fromkeys(run.nearest(step) for step in due)])

    def gaussian(self, draw: Draw) -> LowRankGaussian:
        """Return SWAG's Gaussian of the snapshots."""
        snapshots = self.snapshots(draw)
        moments = RunningMoments(snapshots.shape[1], min(draw.rank, len(snapshots)))
        for snapshot in snapshots:
            moments.fold(snapshot)
        return LowRankGaussian(moments.mean, moments.variance, moments.deviations)

    def center(self, draw: Draw) -> Tensor:
        """Return the center of a draw. Shape (P,)."""
        if draw.center in ("map", "best"):
            run = self.trajectory(draw.collected)
            losses = run.validation_nll
            return run.at(self.steps if draw.center == "map" else min(losses, key=losses.__getitem__))
        snapshots = self.snapshots(draw)
        count = {"mean": len(snapshots), "tail": max(1, round(TAIL * len(snapshots))), "last": 1}[draw.center]
        return snapshots[-count:].mean(0)

    def vectors(self, draw: Draw) -> Tensor:
        """Return the weight vectors of a draw. Shape (S, P)."""
        vectors = self.center(draw).expand(draw.num_samples, -1).clone()
        if draw.scale:
            gaussian = self.gaussian(draw)
            noise = gaussian.sample(draw.num_samples, seed=self.seed, scale=draw.scale) - gaussian.mean
            if draw.head_only:
                keys, sizes = self.weights.layout.keys, self.weights.layout.sizes
                kept = [torch.full((size,), float("classifier" in key)) for key, size in zip(keys, sizes, strict=True)]
                noise *= torch.cat(kept)
            vectors += noise
        return vectors

    def logits(self, draw: Draw, split: str) -> np.ndarray:
        """Return the logits of a split's examples, from the folder where they are there. Shape (S, N, C)."""
        return self.kept(f"{draw.name}.{split}", lambda: self.predict(draw, self.vectors(draw), split)[0])

    def features(self, draw: Draw, split: str) -> np.ndarray:
        """Return the input of the head at a center. Shape (N, h)."""
        return self.kept(f"{draw.name}.{split}.features", lambda: self.predict(draw, self.vectors(draw), split)[1][0])

    def distilled(self, draw: Draw, split: str, temperature: float) -> np.ndarray:
        """Return the logits of one adapter that learns what the draws average to, see `study.distillation`. Shape (1, N, C)."""

        def compute() -> np.ndarray:
            targets = softmax(self.logits(draw, "train").astype(np.float64) / temperature, axis=-1).mean(0)
            vector = distil(self.weights, self.center(draw), self.data.splits["train"], targets, seed=self.seed)
            return np.concatenate(
                [self.predict(Draw("mean"), vector[None], name)[0] for name in ("validation", "test")], axis=1
            )

        both = self.kept(f"{draw.name}.distilled", compute)
        first = len(self.data.splits["validation"].texts)
        return both[:, :first] if split == "validation" else both[:, first:]

    def kept(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array of the folder "logits", computed when it is not there."""
        file = self.folder / "logits" / f"{name}.npy"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            part = file.with_suffix(".part")
            with open(part, "wb") as opened:
                np.save(opened, compute())
            part.rename(file)
        return np.load(file)

    @torch.no_grad()
    def predict(self, draw: Draw, vectors: Tensor, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and inputs of the head for weight vectors (S, P). Shapes (S, N, C) and (S, N, h)."""
        weights, masks = self.dropping if draw.dropout else (self.weights, None)
        model = weights.model
        seen: list[Tensor] = []
        head = model.get_base_model().classifier.modules_to_save[weights.adapter_name]
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        logits, features = [], []
        numbers, batches = zip(*self.data.splits[split].batches(), strict=True)
        order = np.argsort(np.concatenate(numbers))
        for index, vector in enumerate(vectors):
            weights.write(weights.layout.unflatten(vector))
            rows = []
            for batch in batches:
                with masked(masks, range(index, index + 1), batch):
                    rows.append((model(**batch).logits, seen[-1]))
            logits.append(torch.cat([each for each, _ in rows])[order])
            features.append(torch.cat([each for _, each in rows])[order])
        hook.remove()
        return torch.stack(logits).numpy(), torch.stack(features).numpy()


def relative_energy(gaussian: LowRankGaussian) -> float:
    """Return (sum of the variance / 2 + |D|^2 / (2 (K - 1))) / |mean|^2: the spread at scale 1 in units of the mean's squared norm."""
    spread = gaussian.variance.sum() / 2 + gaussian.deviations.square().sum() / (2 * (gaussian.rank - 1))
    return float(spread / gaussian.mean.square().sum())
