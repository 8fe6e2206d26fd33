"""VariationalMixin: a Trainer that learns a mean and a variance for every weight (BLoB, IVON), and ends with a MeanFieldPosterior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swag_trainer.adapters.plain_lora import needs_lift
from swag_trainer.adapters.read_back import check_loadable
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.collection.model_metadata import base_metadata, check_saved_modules, library_versions, task_metadata
from swag_trainer.collection.resume import steps_per_epoch
from swag_trainer.distributed import count_processes
from swag_trainer.errors import SwagError
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.mean_field import MeanFieldPosterior
from swag_trainer.posterior.record import PosteriorRecord

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class VariationalOptimizer(Optimizer, ABC):
    """An optimizer of a Gaussian over the weights, whose mean is what the parameters hold outside of a step.

    Whatever it knows is in its ``state_dict()``, which the Trainer writes into every checkpoint: a resumed run goes on exactly.
    """

    @abstractmethod
    def begin_step(self) -> None:
        """Draw the noise of a step, before the first forward of it."""

    @abstractmethod
    def end_backward(self) -> None:
        """Complete the gradients, and put the mean back in place."""

    @abstractmethod
    def variance(self, parameter: nn.Parameter) -> Tensor:
        """Return the variance of each weight of a parameter. Shape of the parameter, float32."""

    @abstractmethod
    def close(self) -> None:
        """Take the noise out of the model, also of a step that was interrupted."""


class VariationalMethod(Protocol):
    """Settings of a method, which make its optimizer."""

    name: str

    def optimizer(
        self, weights: AdapterWeights, groups: Iterable[dict[str, Any]], *, learning_rate: float, num_examples: int, epoch: int
    ) -> VariationalOptimizer:
        """Make the optimizer.

        Args:
            weights: The adapter that trains.
            groups: Parameter groups as the Trainer makes them.
            learning_rate: Of the Trainer.
            num_examples: N, the number of training examples.
            epoch: Optimizer steps in an epoch.
        """

    def settings(self) -> dict[str, float]:
        """Return the numbers that the posterior's record keeps."""


class VariationalMixin(_Base):
    """Trains a Gaussian with independent weights over an adapter by variational inference.

    Put it in front of the Trainer's class::

        class VariationalTrainer(VariationalMixin, Trainer):
            pass

        trainer = VariationalTrainer(model=model, args=args, train_dataset=data, variational=Blob())
        trainer.train()
        trainer.posterior.push_to_hub("me/repo")

    After training the adapter holds the mean, ``trainer.posterior`` is the posterior, and both lie in ``args.output_dir``. Evaluation during
    training is that of the mean.

    Args:
        variational: `Blob` or `Ivon`, with their settings.
        **kwargs: Of the Trainer. It may not get an optimizer of its own.

    Raises:
        SwagError: An optimizer was passed, the model has no adapter that another process could load, or its training set has no length.
    """

    def __init__(self, *args: Any, variational: VariationalMethod, **kwargs: Any) -> None:
        self._method = variational
        self._variational: VariationalOptimizer | None = None
        self._posterior: MeanFieldPosterior | None = None
        super().__init__(*args, **kwargs)
        if self.optimizer is not None or self.optimizer_cls_and_kwargs is not None:
            raise SwagError(f"{variational.name} is an optimizer itself: pass no optimizers to the Trainer.")
        if self.args.load_best_model_at_end:
            raise SwagError(
                f"{variational.name} learns mean and variance together, and load_best_model_at_end would put an earlier mean beside the "
                "last variance. Leave it out; the checkpoints keep both."
            )
        if getattr(self.args, "enable_jit_checkpoint", False):
            raise SwagError(f"{variational.name} has noise in the weights during a step: enable_jit_checkpoint would save it.")
        self.add_callback(_Steps(self))

    @property
    def posterior(self) -> MeanFieldPosterior:
        """The posterior, when training is over.

        Raises:
            SwagError: It is not.
        """
        if self._posterior is None:
            raise SwagError("There is no posterior yet: it is made at the end of train().")
        return self._posterior

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as the Trainer's own method does; however it ends, the adapter holds the mean."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._variational is not None:
                self._variational.close()
            self._variational = self.optimizer = self.lr_scheduler = (
                None  # another train() begins with the variances of a beginning
            )

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Make the method's optimizer, of the groups that the Trainer would give to AdamW."""
        if self.optimizer is not None:
            return self.optimizer
        if count_processes() > 1:
            raise SwagError(f"{self._method.name} draws noise in every process and does not exchange it: train in one process.")
        self._weights = AdapterWeights(self.model)
        check_saved_modules(self._weights)
        adapter = self._weights.saved()
        if needs_lift(adapter.config):
            raise SwagError(
                "The adapter's initialisation changed the base and cannot be repeated, so a posterior of this kind cannot be saved. "
                "Train a plain LoRA adapter: leave out init_lora_weights."
            )
        check_loadable(self._weights, adapter)
        low = [key for key, weight in self._weights.named_parameters().items() if weight.dtype != torch.float32]
        if low:
            raise SwagError(
                f"{self._method.name} adds small noise to the weights, which needs float32, and {low[0]!r} is not: upcast it."
            )
        decayed = set(self.get_decay_parameter_names(self.model))
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        groups = [
            {
                "params": [weight for name, weight in trained if (name in decayed) == decays],
                "weight_decay": self.args.weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]
        self._variational = self.optimizer = self._method.optimizer(
            self._weights,
            [group for group in groups if group["params"]],
            learning_rate=self.args.learning_rate,
            num_examples=self._num_examples(),
            epoch=steps_per_epoch(self.get_train_dataloader(), self.args),
        )
        return self.optimizer

    def _num_examples(self) -> int:
        try:
            return len(self.train_dataset)
        except TypeError as error:
            raise SwagError(
                f"{self._method.name} weighs the prior by the number of training examples, and this data set has no length."
            ) from error

    def _finish(self) -> None:
        """Make the posterior of what the optimizer learned, and save it."""
        optimizer, weights = self._variational, self._weights
        parameters = weights.named_parameters()
        variance = {key: optimizer.variance(parameter).cpu() for key, parameter in parameters.items()}
        adapter, layout = weights.saved(), weights.layout
        record = PosteriorRecord(
            base_model=adapter.base_model,
            versions=library_versions(),
            **base_metadata(weights),
            **task_metadata(weights, problem_type=None),
        )
        mean = {key: weight.float().cpu() for key, weight in weights.read().items()}
        fit = FitRecord(self._method.name.lower(), num_examples=self._num_examples(), settings=self._method.settings())
        self._posterior = MeanFieldPosterior(
            layout, layout.flatten(mean).clone(), layout.flatten(variance).clone(), record, fit, adapter
        )
        if self.args.should_save:
            self._posterior.save_pretrained(Path(self.args.output_dir) / weights.subfolder)


class _Steps(TrainerCallback):
    """Tells the optimizer where a step begins, which the Trainer tells callbacks alone."""

    def __init__(self, trainer: VariationalMixin) -> None:
        self._trainer = trainer

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer._variational.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with torch.no_grad():
            self._trainer._variational.end_backward()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer._finish()
