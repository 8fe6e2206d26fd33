"""Bayesian low-rank adaptation for the Hugging Face Trainer: SWAG over an adapter's weights (arXiv:2405.03425)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from swag_trainer.errors import (
    AdapterMismatchError,
    PosteriorFormatError,
    PosteriorNotFoundError,
    SwagError,
    TooFewCollectionsError,
)
from swag_trainer.prediction.registration import register_tasks
from swag_trainer.version import __version__

if TYPE_CHECKING:
    from swag_trainer.adapters.coefficients import train_coefficients
    from swag_trainer.adapters.export import export_adapters
    from swag_trainer.adapters.gguf import as_dequantised
    from swag_trainer.adapters.plain_lora import to_plain_lora
    from swag_trainer.calibration.stack import stack
    from swag_trainer.calibration.tune import tune
    from swag_trainer.collection.acceptance import Adaptive
    from swag_trainer.collection.blob import Blob
    from swag_trainer.collection.callback import SwagCallback
    from swag_trainer.collection.checkpoints import last_complete_checkpoint
    from swag_trainer.collection.collaboration import CollaborationCallback
    from swag_trainer.collection.from_checkpoints import posterior_from_checkpoints
    from swag_trainer.collection.ivon import Ivon
    from swag_trainer.collection.multiple_choice import MultipleChoiceMixin
    from swag_trainer.collection.schedule import Evenly, Every
    from swag_trainer.collection.trainer_mixin import SwagTrainerMixin
    from swag_trainer.collection.variational import VariationalMixin
    from swag_trainer.fitting.fit import fit_posterior
    from swag_trainer.fitting.point import point_posterior
    from swag_trainer.posterior import load_posterior
    from swag_trainer.posterior.base import WeightPosterior
    from swag_trainer.posterior.coefficients import CoefficientPosterior
    from swag_trainer.posterior.combined import CombinedPosterior
    from swag_trainer.posterior.kronecker import KroneckerPosterior
    from swag_trainer.posterior.lora_xs import LoraXs
    from swag_trainer.posterior.mean_field import MeanFieldPosterior
    from swag_trainer.posterior.mixture import PosteriorMixture
    from swag_trainer.posterior.nola import Nola
    from swag_trainer.posterior.point import PointPosterior
    from swag_trainer.posterior.swag import SwagPosterior
    from swag_trainer.prediction.generation import TextGenerator
    from swag_trainer.prediction.pipelines.image_classification import SwagImageClassificationPipeline
    from swag_trainer.prediction.pipelines.multiple_choice import SwagMultipleChoicePipeline
    from swag_trainer.prediction.pipelines.multiple_choice_encoder import SwagMultipleChoiceEncoderPipeline
    from swag_trainer.prediction.pipelines.question_answering import SwagQuestionAnsweringPipeline
    from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline
    from swag_trainer.prediction.pipelines.text_generation import SwagTextGenerationPipeline
    from swag_trainer.prediction.pipelines.token_classification import SwagTokenClassificationPipeline
    from swag_trainer.prediction.pipelines.zero_shot_classification import SwagZeroShotClassificationPipeline
    from swag_trainer.prediction.predictive import Predictive
    from swag_trainer.prediction.predictor import MonteCarloPredictor
    from swag_trainer.prediction.sampler import Sampling
    from swag_trainer.prediction.trainer_evaluation import SwagEvaluationMixin
    from swag_trainer.tasks.choice_pairs import ChoicePairCollator
    from swag_trainer.tasks.choice_settings import ChoiceSettings
    from swag_trainer.tasks.question_encoder import ChoiceCollator

__all__ = [
    "Adaptive",
    "AdapterMismatchError",
    "Blob",
    "ChoiceCollator",
    "ChoicePairCollator",
    "ChoiceSettings",
    "CollaborationCallback",
    "CoefficientPosterior",
    "CombinedPosterior",
    "Evenly",
    "Every",
    "Ivon",
    "KroneckerPosterior",
    "LoraXs",
    "MeanFieldPosterior",
    "MonteCarloPredictor",
    "MultipleChoiceMixin",
    "Nola",
    "PointPosterior",
    "PosteriorFormatError",
    "PosteriorMixture",
    "PosteriorNotFoundError",
    "Predictive",
    "Sampling",
    "SwagCallback",
    "SwagError",
    "SwagEvaluationMixin",
    "SwagImageClassificationPipeline",
    "SwagMultipleChoiceEncoderPipeline",
    "SwagMultipleChoicePipeline",
    "SwagPosterior",
    "SwagQuestionAnsweringPipeline",
    "SwagTextClassificationPipeline",
    "SwagTextGenerationPipeline",
    "SwagTokenClassificationPipeline",
    "SwagTrainerMixin",
    "TextGenerator",
    "SwagZeroShotClassificationPipeline",
    "TooFewCollectionsError",
    "VariationalMixin",
    "WeightPosterior",
    "__version__",
    "export_adapters",
    "fit_posterior",
    "as_dequantised",
    "last_complete_checkpoint",
    "load_posterior",
    "point_posterior",
    "posterior_from_checkpoints",
    "stack",
    "to_plain_lora",
    "train_coefficients",
    "tune",
]

# Imported when they are asked for: torch, transformers and PEFT take seconds, which `swag-trainer --help` has no use for.
_MODULES = {
    "Adaptive": "collection.acceptance",
    "Blob": "collection.blob",
    "ChoiceCollator": "tasks.question_encoder",
    "ChoicePairCollator": "tasks.choice_pairs",
    "ChoiceSettings": "tasks.choice_settings",
    "CollaborationCallback": "collection.collaboration",
    "CoefficientPosterior": "posterior.coefficients",
    "CombinedPosterior": "posterior.combined",
    "Evenly": "collection.schedule",
    "Every": "collection.schedule",
    "Ivon": "collection.ivon",
    "KroneckerPosterior": "posterior.kronecker",
    "LoraXs": "posterior.lora_xs",
    "MeanFieldPosterior": "posterior.mean_field",
    "MonteCarloPredictor": "prediction.predictor",
    "MultipleChoiceMixin": "collection.multiple_choice",
    "Nola": "posterior.nola",
    "PointPosterior": "posterior.point",
    "PosteriorMixture": "posterior.mixture",
    "Predictive": "prediction.predictive",
    "Sampling": "prediction.sampler",
    "SwagCallback": "collection.callback",
    "SwagEvaluationMixin": "prediction.trainer_evaluation",
    "SwagImageClassificationPipeline": "prediction.pipelines.image_classification",
    "SwagMultipleChoiceEncoderPipeline": "prediction.pipelines.multiple_choice_encoder",
    "SwagMultipleChoicePipeline": "prediction.pipelines.multiple_choice",
    "SwagPosterior": "posterior.swag",
    "SwagQuestionAnsweringPipeline": "prediction.pipelines.question_answering",
    "SwagTextClassificationPipeline": "prediction.pipelines.text_classification",
    "SwagTextGenerationPipeline": "prediction.pipelines.text_generation",
    "SwagZeroShotClassificationPipeline": "prediction.pipelines.zero_shot_classification",
    "SwagTokenClassificationPipeline": "prediction.pipelines.token_classification",
    "SwagTrainerMixin": "collection.trainer_mixin",
    "TextGenerator": "prediction.generation",
    "VariationalMixin": "collection.variational",
    "WeightPosterior": "posterior.base",
    "export_adapters": "adapters.export",
    "fit_posterior": "fitting.fit",
    "as_dequantised": "adapters.gguf",
    "last_complete_checkpoint": "collection.checkpoints",
    "load_posterior": "posterior",
    "point_posterior": "fitting.point",
    "posterior_from_checkpoints": "collection.from_checkpoints",
    "stack": "calibration.stack",
    "to_plain_lora": "adapters.plain_lora",
    "train_coefficients": "adapters.coefficients",
    "tune": "calibration.tune",
}

register_tasks()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
