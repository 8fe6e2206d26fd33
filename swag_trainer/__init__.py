"""Bayesian low-rank adaptation for the Hugging Face Trainer: SWAG over an adapter's weights (arXiv:2405.03425)."""

from typing import TYPE_CHECKING, Any

from swag_trainer.collection.acceptance import Adaptive
from swag_trainer.collection.callback import SwagCallback
from swag_trainer.collection.checkpoints import last_complete_checkpoint
from swag_trainer.collection.schedule import Evenly, Every
from swag_trainer.errors import (
    AdapterMismatchError,
    PosteriorFormatError,
    PosteriorNotFoundError,
    SwagError,
    TooFewCollectionsError,
)
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.prediction.predictive import Predictive
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.registration import register_tasks
from swag_trainer.version import __version__

if TYPE_CHECKING:
    from swag_trainer.prediction.pipeline import SwagTextClassificationPipeline
    from swag_trainer.prediction.trainer_evaluation import SwagEvaluationMixin

__all__ = [
    "Adaptive",
    "AdapterMismatchError",
    "Evenly",
    "Every",
    "MonteCarloPredictor",
    "PosteriorFormatError",
    "PosteriorNotFoundError",
    "Predictive",
    "SwagCallback",
    "SwagError",
    "SwagEvaluationMixin",
    "SwagPosterior",
    "SwagTextClassificationPipeline",
    "TooFewCollectionsError",
    "__version__",
    "last_complete_checkpoint",
]


register_tasks()


def __getattr__(name: str) -> Any:
    """Import the pipeline and what is for the Trainer when they are asked for: transformers' pipelines take a second to import."""
    if name == "SwagTextClassificationPipeline":
        from swag_trainer.prediction.pipeline import SwagTextClassificationPipeline

        return SwagTextClassificationPipeline
    if name == "SwagEvaluationMixin":
        from swag_trainer.prediction.trainer_evaluation import SwagEvaluationMixin

        return SwagEvaluationMixin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
