"""``Trainer.predict`` and ``Trainer.evaluate`` with the averaged predictions of a posterior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, nll_loss

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.errors import SwagError
from swag_trainer.metrics.scores import log_probabilities
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.predictive import Predictive, RegressionPredictive
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.transformers_internals import EvaluatesInOrder
from swag_trainer.tasks.base import Link
from swag_trainer.tasks.question_answering import QuestionAnswering


class SwagEvaluationMixin(EvaluatesInOrder):
    """Lets a Trainer predict and evaluate with the average over a posterior instead of the model's one set of weights.

    Put it in front of the Trainer's class::

        class PosteriorTrainer(SwagEvaluationMixin, Trainer):
            pass

        trainer = PosteriorTrainer(model=model, args=args, ..., compute_metrics=compute_metrics, callbacks=[swag])
        trainer.train()
        trainer.use_posterior(swag.posterior)
        trainer.evaluate()

    What goes over processes, gathers, pads and measures stays the Trainer's own. ``predictions`` are the logarithms of the averaged
    probabilities (of labels that do not exclude each other: their log-odds; of a regression: the mean outputs), so that whatever
    ``compute_metrics`` does with logits gives the average's own metrics: their argmax is its class, their softmax (sigmoid) the averaged
    probabilities, their cross-entropy its negative log-likelihood. In token classification they have the shape of the model's logits,
    with zeros where the label is -100. ``eval_loss`` is that likelihood, or the squared error of a
    regression's mean; neither ``label_smoothing_factor`` nor ``compute_loss_func`` is in it.

    Rows come in the order of the data set, also with ``train_sampling_strategy="group_by_length"``, with which a plain Trainer predicts
    in another order and does not say which.
    """

    _posterior: WeightPosterior | None = None
    _settings: Mapping[str, Any] = {}
    _predictor: MonteCarloPredictor | None = None

    def use_posterior(self, posterior: WeightPosterior | None, **settings: Any) -> None:
        """Predict with a posterior from now on, also in evaluations during training; with None by the model itself again.

        Args:
            posterior: Of the model's active adapter.
            settings: Further arguments of `MonteCarloPredictor`: ``sampling``, or its fields ``num_samples``, ``seed``, ``scale``, ...

        Raises:
            AdapterMismatchError: The posterior has other weights than the adapter.
            SwagError: A setting is out of range; the adapter is merged, switched off or not active; the model has one output and no
                ``problem_type``.
        """
        if posterior is not None:
            posterior = posterior.with_features(None)  # an OOD score costs a forward, and no metric of the Trainer takes it
            model = self._whole_model()
            predictor = MonteCarloPredictor(model, posterior, **settings)  # refuses now what it would refuse in the first batch
            if predictor.task.name == QuestionAnswering.name:
                raise SwagError(
                    "A Trainer evaluates one prediction for each row, and an answer has a start and an end. Measure the spans of "
                    'pipeline("swag-question-answering", ...), or starts and ends with swag_trainer.evaluation.'
                )
            config = base_model(adapted_model(model)).config
            if config.num_labels == 1 and config.problem_type is None:
                raise SwagError(
                    "The model has one output, and its config does not say what it is. A Trainer takes it for a regression, a pipeline "
                    'for a yes or no: set model.config.problem_type to "regression" or "multi_label_classification".'
                )
        self._posterior, self._settings = posterior, settings

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's own, with one set of draws from its first batch to its last."""
        # A predictor for each loop: what a longer one knew of the model, training, merging or another device may have made untrue.
        self._predictor = None
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self._predictor = None

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As the Trainer's own, averaged: loss, predictions as the class describes them, labels."""
        if self._posterior is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        if self._predictor is None:  # not earlier: only now is the model where the Trainer wants it
            self._predictor = MonteCarloPredictor(self._whole_model(), self._posterior, **self._settings)
        inputs = self._prepare_inputs(inputs)
        labels = self._labels(inputs)
        averaged = self._predictor.predict(inputs)
        predictions = torch.from_numpy(as_predictions(averaged, self._predictor.link)).to(self.args.device, torch.float32)
        predictions = self._predictor.task.restored(predictions, inputs)
        loss = None if labels is None else loss_of(predictions, labels, self._predictor.link)
        return (loss, None, None) if prediction_loss_only else (loss, predictions, labels)

    def _whole_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _labels(self, inputs: Mapping[str, Any]) -> Tensor | None:
        found = [inputs[name] for name in self.label_names if inputs.get(name) is not None]
        if len(found) > 1:
            raise SwagError(f"A posterior predicts one kind of label, these rows have {self.label_names}.")
        return found[0].detach() if found else None


def as_predictions(averaged: Predictive | RegressionPredictive, link: Link) -> np.ndarray:
    """Turn an average into what a model would have to return for it: log-probabilities, log-odds or outputs. Shape (N, C).

    Never below -708, the logarithm of the smallest float64 number that has all its digits, and log-odds not above 36.7: infinity
    would become NaN in a softmax or a mean.
    """
    if isinstance(averaged, RegressionPredictive):
        return averaged.mean
    if link == "sigmoid":
        kept = np.minimum(averaged.probabilities, 1 - np.finfo(np.float64).epsneg)
        return log_probabilities(kept) - np.log1p(-kept)
    return log_probabilities(averaged.probabilities)


def loss_of(predictions: Tensor, labels: Tensor, link: Link) -> Tensor:
    """Mean loss of `as_predictions`: negative log-likelihood, or the squared error of a regression.

    Args:
        predictions: Shape (N, C), or of the tokens of texts (N, T, C).
        labels: Class numbers of shape (N,) or (N, T), -100 for a row or a token without; for several labels at once 0 and 1 of shape (N, C); for a
            regression numbers of either shape.
        link: The predictor's.
    """
    if link == "softmax":
        if labels.is_floating_point():
            raise SwagError(
                "The labels are not class numbers, but the model's config does not say so: set model.config.problem_type to "
                '"multi_label_classification", or make them whole numbers.'
            )
        return nll_loss(predictions.flatten(0, -2), labels.flatten(), ignore_index=-100)
    if link == "sigmoid":
        return binary_cross_entropy_with_logits(predictions, labels.view_as(predictions).to(predictions.dtype))
    return mse_loss(predictions, labels.view_as(predictions).to(predictions.dtype))
