"""The pipeline "swag-text-classification": text in, averaged probabilities and their uncertainty out."""

from __future__ import annotations

import difflib
import inspect
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TextClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.base import SUPPORTED_PEFT_TASKS
from transformers.pipelines.text_classification import ClassificationFunction

from swag_trainer.errors import PosteriorNotFoundError, SwagError
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import Request, decide
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification
from swag_trainer.prediction.predictive import RegressionPredictive, summarise
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.tasks import task_named
from swag_trainer.tasks.base import Link

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

    An answer that is not to be relied on is withheld: with ``abstain_below``, ``risk`` or ``coverage``, which exclude each other, ``label``
    is None where the likeliest label's score is too low. The label then stands under ``top_label`` and a sentence under ``reason``; score
    and uncertainty stay, and an answer that is given has neither of the two keys. With ``prediction_set`` the labels that cannot be ruled
    out stand under that key, the likeliest first. With ``top_k`` all this is in the first answer of the ranking, the others stay as they
    are. For classes that exclude each other only.

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, for a model that does not.
        tokenizer: A tokenizer or its name. By default, for a model that was loaded with its posterior, the one beside the adapter, or
            the base model's where there is none.
        num_samples: S, how many draws; this and all below here or in the call. Where not given, as many as `swag_trainer.tune` took, or 10.
        seed: The draws depend on this alone. Where not given, the seed of `swag_trainer.tune`, or 0.
        scale: Factor of the covariance; None for the posterior's own, 0 for one pass at the mean (SWA).
        temperature: As in `MonteCarloPredictor`: None for the one that `swag_trainer.tune` chose.
        abstain_below: A score to abstain below; 0 never does.
        risk: Largest share of wrong answers among those given, one of the ``risks`` that the posterior was tuned with.
        coverage: Share of rows to answer, one of the ``coverages`` that the posterior was tuned with.
        prediction_set: Share of the sets that hold the true label, one of the ``levels`` that the posterior was tuned with.
        prediction_set_method: "aps" unless told otherwise, "raps" or "lac", see `swag_trainer.metrics.conformal`.
        **kwargs: What `transformers.TextClassificationPipeline` takes. An argument that neither it nor the tokenizer knows is refused.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range, or needs a posterior that was tuned, with these draws and for this level.
    """

    _load_tokenizer = False  # by transformers, which would take the base model's

    def __init__(self, model: Any, *, posterior: WeightPosterior | None = None, tokenizer: Any = None, **kwargs: Any) -> None:
        posterior = posterior if posterior is not None else getattr(model, "swag_posterior", None)
        if not isinstance(posterior, WeightPosterior):
            raise PosteriorNotFoundError(
                f"The model {type(model).__name__} comes without a posterior. Load it with "
                'pipeline("swag-text-classification", model="user/repo"), or pass posterior=...'
            )
        tokenizer = _loaded(tokenizer, model)
        self.posterior = posterior
        self._predictor: MonteCarloPredictor | None = None
        self._lock = threading.Lock()
        self.tokenizer = tokenizer  # _sanitize_parameters is called by the constructor and asks which arguments it knows
        super().__init__(model=model, tokenizer=tokenizer, **{"task": TEXT_CLASSIFICATION_TASK, **kwargs})

    @property
    def request(self) -> Request:
        """What the constructor asked for, which holds for every call that says nothing else; None where it did not say.

        ``request.resolved(posterior)`` has the draws, scale and temperature that answer then.
        """
        # Where transformers keeps what `_sanitize_parameters` returned to the constructor, which is yet to come the first time it is called.
        return getattr(self, "_forward_params", {}).get("request", Request())

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
        self, function_to_apply: str | None = None, top_k: int | None | str = "", **others: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        options = {name: others.pop(name) for name in Request.option_names() if name in others}
        self._refuse_unknown(others)
        request = self.request.updated(options)
        decide(request, self.posterior)
        request.resolved(self.posterior)  # both refuse what cannot be done before a text is read
        preprocess, _, postprocess = super()._sanitize_parameters(function_to_apply, top_k, **others)
        return preprocess, {"request": request}, postprocess | {"request": request}

    def _refuse_unknown(self, arguments: dict[str, Any]) -> None:
        """TextClassificationPipeline hands every argument it does not know to the tokenizer, which ignores a misspelt one."""
        ours = [*Request.option_names(), "function_to_apply", "top_k", "batch_size"]
        tokenizers = list(inspect.signature(type(self.tokenizer).__call__).parameters) if self.tokenizer is not None else []
        for name in arguments:
            if name not in tokenizers or name in ("self", "kwargs"):
                close = difflib.get_close_matches(name, ours + tokenizers, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise SwagError(f"swag-text-classification knows no argument {name!r}, and neither does the tokenizer.{hint}")

    def _forward(self, model_inputs: dict[str, Any], request: Request) -> dict[str, Any]:
        logits = self._predictor_for(request.resolved(self.posterior)).logits(model_inputs)
        # transformers takes batches apart along the first axis of whatever comes back.
        return {"logits": logits.transpose(0, 1).contiguous()}

    def _predictor_for(self, request: Request) -> MonteCarloPredictor:
        draws = {"num_samples": request.num_samples, "seed": request.seed, "scale": request.scale}
        with self._lock:
            kept = self._predictor
            if kept is None or any(getattr(kept.sampling, name) != value for name, value in draws.items()):
                kept = self._predictor = MonteCarloPredictor(self.model, self.posterior, **draws)
            return kept

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        function_to_apply: ClassificationFunction | None = None,
        top_k: int | None = 1,
        _legacy: bool = True,
        request: Request = Request(),  # noqa: B008 - frozen
    ) -> Any:
        """Average the draws of one input and put the answer into transformers' form."""
        config = self.model.config
        link = _LINKS[function_to_apply] if function_to_apply in _LINKS else task_named(self.posterior.record.task).link(config)
        logits: torch.Tensor = model_outputs["logits"].transpose(0, 1)  # (S, 1, C)
        decision = decide(request, self.posterior)
        if decision and link != "softmax":
            raise SwagError(
                "Abstaining and prediction sets are for classes that exclude each other, whose probabilities sum to 1; these answers are "
                f"{'plain numbers' if link == 'identity' else 'judged label by label'}."
            )
        if link == "identity" and request.temperature is not None:
            raise SwagError("temperature=... turns into probabilities what here stays a number; leave it out.")
        predictive = summarise(logits, link, temperature=request.resolved(self.posterior).temperature)
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
            best = [rows[int(scores.argmax())]]
            return decision.act(best, scores, config.id2label)[0] if decision else best[0]
        if not _legacy:
            rows = sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k]
        return decision.act(rows, scores, config.id2label) if decision else rows


def _loaded(tokenizer: Any, model: Any) -> Any:
    """What `transformers.pipeline` takes as a tokenizer, made one: a tokenizer, its name, or a name and arguments for loading it."""
    source = getattr(model, "swag_tokenizer", None)
    if isinstance(tokenizer, (str, tuple)):
        name, options = (tokenizer, {}) if isinstance(tokenizer, str) else tokenizer
        return AutoTokenizer.from_pretrained(name, **({"token": source.hub.get("token")} if source else {}) | options)
    if tokenizer is None and source is None:
        raise SwagError(
            f"The model {type(model).__name__} was not loaded by this pipeline, so nobody can tell its tokenizer: pass tokenizer=..."
        )
    return source.load() if tokenizer is None else tokenizer


if TEXT_CLASSIFICATION_TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(
        TEXT_CLASSIFICATION_TASK,
        pipeline_class=SwagTextClassificationPipeline,
        pt_model=AutoSwagModelForSequenceClassification,
        type="text",
    )
    SUPPORTED_PEFT_TASKS[TEXT_CLASSIFICATION_TASK] = ["PeftModelForSequenceClassification", "PeftModel"]
