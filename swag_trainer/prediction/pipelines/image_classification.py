"""The pipeline "swag-image-classification": images in, averaged probabilities and their uncertainty out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import ImageClassificationPipeline

from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import PredictionOptions
from swag_trainer.prediction.image_processors import image_processor_for
from swag_trainer.prediction.loading import AutoSwagModelForImageClassification
from swag_trainer.prediction.pipelines.base import PosteriorPipeline, check_top_k
from swag_trainer.prediction.pipelines.label_scores import LabelScores, decision_for, link_of
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks.image_classification import ImageClassification


class SwagImageClassificationPipeline(PosteriorPipeline, ImageClassificationPipeline):
    """Image classification with the predictions of S weight draws averaged.

    Everything that `transformers.ImageClassificationPipeline` takes and returns holds here too: paths, addresses and PIL images, alone
    or in a list, ``top_k`` (default: 5), ``function_to_apply``, ``timeout``, ``batch_size``. Each label also has ``entropy`` and
    ``mutual_information`` in nats, those of the whole prediction, or for a regression model the draws' ``std``.

        from transformers import pipeline
        import swag_trainer

        classify = pipeline("swag-image-classification", model="me/vit-beans-swag", num_samples=10, seed=0)
        classify("leaf.jpg", top_k=1)
        # [{'label': 'healthy', 'score': 0.94, 'entropy': 0.23, 'mutual_information': 0.02}]

    An unreliable prediction is withheld, and sets of labels are given, as in `SwagTextClassificationPipeline`.

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, of any kind, for a model that has none attached.
        image_processor: An image processor or its name. Default: for a model that was loaded with its posterior, the one beside the
            adapter, or the base model's where there is none.
        **kwargs: Options of `PredictionOptions` and what `transformers.ImageClassificationPipeline` takes, in the constructor or a call.

    Attributes:
        posterior, options: See `PosteriorPipeline`.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range, or there is no image processor.
    """

    swag_task = ImageClassification.name
    takes_text = False
    own_arguments = ("function_to_apply", "timeout", "top_k")

    def __init__(
        self, model: Any, *, posterior: WeightPosterior | None = None, image_processor: Any = None, **kwargs: Any
    ) -> None:
        processor = image_processor_for(model, image_processor)
        super().__init__(model=model, posterior=posterior, image_processor=processor, **kwargs)

    def own_parameters(
        self, top_k: int | None = None, function_to_apply: str | None = None, timeout: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide arguments as transformers' pipeline does; the forward has to know the function to apply."""
        check_top_k(top_k)
        preprocess, forward, postprocess = ImageClassificationPipeline._sanitize_parameters(
            self, top_k, function_to_apply, timeout
        )
        link = link_of(postprocess.get("function_to_apply"))
        return preprocess, forward | ({} if link is None else {"link": link}), postprocess

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:
        """Make model inputs of an image, as transformers does."""
        return ImageClassificationPipeline.preprocess(self, image, timeout=timeout)

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        function_to_apply: Any = None,
        top_k: int = 5,
        options: PredictionOptions = PredictionOptions(),  # noqa: B008 - frozen
    ) -> list[dict[str, Any]]:
        """Put the prediction of one image into transformers' form, and decide upon it."""
        config = self.model.config
        own = self.predicted_task().link(config)
        decision = decision_for(options, self.posterior, link_of(function_to_apply) or own, own=own)
        found = LabelScores.of(self.predictive_of(model_outputs), config.id2label)
        return found.decided(decision, found.ranked(top_k), config.id2label)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write adapter, posterior and image processor into a folder that `transformers.pipeline` loads."""
        super().save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory)


register_pipeline(SwagImageClassificationPipeline, AutoSwagModelForImageClassification, inputs="image")
