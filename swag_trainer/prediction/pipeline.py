"""The pipeline "swag-text-classification": text in, averaged probabilities and their uncertainty out."""

from __future__ import annotations

import difflib
import inspect
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import TextClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS
from transformers.pipelines.text_classification import ClassificationFunction

from swag_trainer.errors import PosteriorNotFoundError, SwagError
from swag_trainer.posterior.swag import SwagPosterior, checked_scale
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification
from swag_trainer.prediction.predictive import Link, RegressionPredictive, link_of, summarise
from swag_trainer.prediction.predictor import MonteCarloPredictor

TEXT_CLASSIFICATION_TASK = "swag-text-classification"

_LINKS: dict[ClassificationFunction, Link] = {
    ClassificationFunction.SOFTMAX: "softmax",
    ClassificationFunction.SIGMOID: "sigmoid",
    ClassificationFunction.NONE: "identity",
}


class SwagTextClassificationPipeline(TextClassificationPipeline):
    """Text classification with the answers of S weight draws averaged.

    Everything that `transformers.TextClassificationPipeline` takes and returns holds here too (``top_k``, text pairs, ``truncation``,
    ``padding``, ``batch_size``, ``function_to_apply``, data sets and generators). Each answer also has its ``entropy`` and its
    ``mutual_information`` in nats; for a regression model it has the draws' ``std`` instead.

        from transformers import pipeline
        import swag_trainer

        classify = pipeline("swag-text-classification", model="me/roberta-sst2-swag", num_samples=10, seed=0)
        classify("A quietly devastating film.")
        # [{'label': 'positive', 'score': 0.94, 'entropy': 0.23, 'mutual_information': 0.02}]

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, for a model that does not.
        num_samples: S, how many draws; here or in the call.
        seed: The draws depend on this alone.
        scale: Factor of the covariance; None for the posterior's own, 0 for one pass at the mean (SWA).
        **kwargs: What `transformers.TextClassificationPipeline` takes. An argument that neither it nor the tokenizer knows is refused.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range.
    """

    def __init__(self, model: Any, *, posterior: SwagPosterior | None = None, tokenizer: Any = None, **kwargs: Any) -> None:
        posterior = posterior if posterior is not None else getattr(model, "swag_posterior", None)
        if not isinstance(posterior, SwagPosterior):
            raise PosteriorNotFoundError(
                f"The model {type(model).__name__} comes without a posterior. Load it with "
                'pipeline("swag-text-classification", model="user/repo"), or pass posterior=...'
            )
        self.posterior = posterior
        self._predictor: MonteCarloPredictor | None = None
        self._lock = threading.Lock()
        self.tokenizer = tokenizer  # _sanitize_parameters is called by the constructor and asks which arguments it knows
        super().__init__(model=model, tokenizer=tokenizer, **{"task": TEXT_CLASSIFICATION_TASK, **kwargs})

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Classify one text, a list of texts, a dictionary with ``text`` and ``text_pair``, a data set or a generator."""
        if type(inputs).__module__.startswith("datasets.") and hasattr(inputs, "source"):  # datasets.Column, which is lazy
            inputs = list(inputs)
        if isinstance(inputs, (list, tuple)) and len(inputs) == 0:
            self._sanitize_parameters(
                **{name: value for name, value in kwargs.items() if name not in ("batch_size", "num_workers")}
            )
            return []
        return super().__call__(inputs, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write adapter, posterior and tokenizer into a folder that `transformers.pipeline` loads."""
        self.posterior.save_pretrained(save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    def _sanitize_parameters(
        self,
        num_samples: int | None = None,
        seed: int | None = None,
        scale: float | None = None,
        function_to_apply: str | None = None,
        top_k: int | None | str = "",
        **tokenizer_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        self._refuse_unknown(tokenizer_kwargs)
        if num_samples is not None and num_samples < 1:
            raise SwagError(
                f"num_samples is the number of draws and must be at least 1, got {num_samples}. For the mean alone pass scale=0."
            )
        if scale is not None:
            checked_scale(scale)
        preprocess, _, postprocess = super()._sanitize_parameters(function_to_apply, top_k, **tokenizer_kwargs)
        forward = {"num_samples": num_samples, "seed": seed, "scale": scale}
        return preprocess, {name: value for name, value in forward.items() if value is not None}, postprocess

    def _refuse_unknown(self, arguments: dict[str, Any]) -> None:
        """TextClassificationPipeline hands every argument it does not know to the tokenizer, which ignores a misspelt one."""
        ours = ["num_samples", "seed", "scale", "function_to_apply", "top_k", "batch_size"]
        tokenizers = list(inspect.signature(type(self.tokenizer).__call__).parameters) if self.tokenizer is not None else []
        for name in arguments:
            if name not in tokenizers or name in ("self", "kwargs"):
                close = difflib.get_close_matches(name, ours + tokenizers, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise SwagError(f"swag-text-classification knows no argument {name!r}, and neither does the tokenizer.{hint}")

    def _forward(
        self, model_inputs: dict[str, Any], num_samples: int = 10, seed: int = 0, scale: float | None = None
    ) -> dict[str, Any]:
        logits = self._predictor_for(num_samples, seed, scale).logits(model_inputs)
        # transformers takes batches apart along the first axis of whatever comes back.
        return {"logits": logits.transpose(0, 1).contiguous()}

    def _predictor_for(self, num_samples: int, seed: int, scale: float | None) -> MonteCarloPredictor:
        scale = self.posterior.scale if scale is None else scale
        with self._lock:
            kept = self._predictor
            if kept is None or (kept.num_samples, kept.seed, kept.scale) != (num_samples, seed, scale):
                kept = MonteCarloPredictor(self.model, self.posterior, num_samples=num_samples, seed=seed, scale=scale)
                self._predictor = kept
            return kept

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        function_to_apply: ClassificationFunction | None = None,
        top_k: int | None = 1,
        _legacy: bool = True,
    ) -> Any:
        """Average the draws of one input and put the answer into transformers' form."""
        config = self.model.config
        link = _LINKS[function_to_apply] if function_to_apply in _LINKS else link_of(config.problem_type, config.num_labels)
        logits: torch.Tensor = model_outputs["logits"].transpose(0, 1)  # (S, 1, C)
        predictive = summarise(logits, link)
        if isinstance(predictive, RegressionPredictive):
            scores, extra = predictive.mean[0], [{"std": float(std)} for std in predictive.std[0]]
        else:
            uncertainty = {
                "entropy": float(predictive.entropy[0]),
                "mutual_information": float(predictive.mutual_information[0]),
            }
            scores, extra = predictive.probabilities[0], [uncertainty] * len(predictive.probabilities[0])
        rows = [{"label": config.id2label[index], "score": float(score), **extra[index]} for index, score in enumerate(scores)]
        if top_k == 1 and _legacy:
            return rows[int(scores.argmax())]
        if not _legacy:
            rows = sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k]
        return rows


if TEXT_CLASSIFICATION_TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(
        TEXT_CLASSIFICATION_TASK,
        pipeline_class=SwagTextClassificationPipeline,
        pt_model=AutoSwagModelForSequenceClassification,
        type="text",
    )
    SUPPORTED_PEFT_TASKS[TEXT_CLASSIFICATION_TASK] = ["PeftModelForSequenceClassification", "PeftModel"]
