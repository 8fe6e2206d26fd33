"""Base class of the pipelines that predict with a posterior: loading, options, the predictor, saving.

The pipeline of a new task is a class of a few lines, see `PosteriorPipeline`, and a call of `register_pipeline`.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoTokenizer, Pipeline

from swag_trainer.adapters.positions import longest_input
from swag_trainer.errors import PosteriorNotFoundError, SwagError, shortened
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import PredictionOptions, check_options
from swag_trainer.prediction.lengths import count_truncated
from swag_trainer.prediction.predictive import Predictive, RegressionPredictive
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.prediction.tokenizers import check_tokens, encoding_errors
from swag_trainer.prediction.transformers_internals import LoadsNoTokenizer, refuse_remote_code
from swag_trainer.tasks import recorded_task
from swag_trainer.tasks.base import Link, Task

logger = logging.getLogger(__name__)


class PosteriorPipeline(LoadsNoTokenizer, Pipeline):
    """Predicts with S weight draws averaged.

    A subclass names its ``swag_task``, makes model inputs of a text in ``preprocess(inputs, **tokenizer_arguments)``, and an output of
    what `predictive_of` returns in ``postprocess(model_outputs, options)``. Where it also inherits from a pipeline of transformers, it
    overrides `own_parameters` to call that class's ``_sanitize_parameters``. Where posteriors of other tasks serve it as well, it names
    these ``other_tasks``; where not all options of `PredictionOptions` make sense, those that do its ``option_names``; ``takes_tokenizer_arguments``
    where arguments of the tokenizer may be given in a call. One for images sets ``takes_text = False`` and has no tokenizer.

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, for a model that has none attached.
        tokenizer: A tokenizer or its name. Default: for a model that was loaded with its posterior, the one beside the adapter, or the
            base model's where there is none.
        **kwargs: Options of `PredictionOptions`, and arguments of `transformers.Pipeline` and of the tokenizer; others are refused.

    Attributes:
        posterior: The posterior that is drawn from.
        options: What the constructor was asked for. It holds for every call that asks for nothing else; ``options.resolved(posterior)``
            has the draws, scale and temperature.
        num_truncated: How many inputs were truncated so far.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range, or the posterior is for another task.
    """

    swag_task: ClassVar[str]
    own_arguments: ClassVar[Sequence[str]] = ()
    other_tasks: ClassVar[Sequence[str]] = ()
    option_names: ClassVar[Sequence[str]] = tuple(PredictionOptions.option_names())
    takes_tokenizer_arguments: ClassVar[bool] = True
    takes_text: ClassVar[bool] = True

    def __init__(self, model: Any, *, posterior: WeightPosterior | None = None, tokenizer: Any = None, **kwargs: Any) -> None:
        posterior = posterior if posterior is not None else getattr(model, "swag_posterior", None)
        if not isinstance(posterior, WeightPosterior):
            raise PosteriorNotFoundError(
                f"The model {type(model).__name__} comes without a posterior. Load it with "
                f'pipeline("{self.swag_task}", model="user/repo"), or pass posterior=...'
            )
        if posterior.record.task not in (None, self.swag_task, *self.other_tasks):
            raise SwagError(f"The posterior is for the task {posterior.record.task!r}, this pipeline for {self.swag_task!r}.")
        self.posterior = posterior
        # _sanitize_parameters, which the constructor calls, asks the tokenizer for its arguments.
        if tokenizer is not None and not self.takes_text:
            raise SwagError(f"{self.swag_task} takes images, and no tokenizer: leave tokenizer=... out.")
        self.tokenizer = _loaded(tokenizer, model) if self.takes_text else None
        self._predictor: Any = None
        self._settings: dict[str, Any] = {}
        self._lock = threading.Lock()
        # A tokenizer is told where to truncate before it encodes: of two threads one would get the other's length.
        self._tokenizer_lock = threading.Lock()
        self.num_truncated = 0
        asked = {name: kwargs.pop(name) for name in self.option_names if name in kwargs}
        self.options = PredictionOptions().updated(asked)
        super().__init__(model=model, tokenizer=self.tokenizer, **{"task": self.swag_task, **kwargs})

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Predict a text, a list of texts, a data set, a column of one, or a generator."""
        if type(inputs).__module__.startswith("datasets.") and hasattr(inputs, "source"):  # datasets.Column, which is lazy
            inputs = list(inputs)
        if isinstance(inputs, (list, tuple)) and len(inputs) == 0:
            self._sanitize_parameters(
                **{name: value for name, value in kwargs.items() if name not in ("batch_size", "num_workers")}
            )
            return []
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any, **tokenizer_arguments: Any) -> Any:
        """Make model inputs of a text. Unless ``truncation=False``, one that the model cannot take is cut, as in training."""
        limit = longest_input(self.tokenizer, self.model)
        if limit is not None and tokenizer_arguments.setdefault("truncation", True) not in (False, "do_not_truncate"):
            tokenizer_arguments.setdefault("max_length", limit)
        with self._tokenizer_lock, encoding_errors():
            model_inputs = super().preprocess(inputs, **tokenizer_arguments)
        self.note_truncated(count_truncated(model_inputs))
        return model_inputs

    def note_truncated(self, count: int) -> None:
        """Count an input if any of its texts were truncated, and warn of the first one."""
        if count and self.num_truncated == 0:
            logger.warning("A text is too long for the model and was truncated; the pipeline's num_truncated counts them.")
        self.num_truncated += bool(count)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the predictor and its lock behind: a copy, or the same pipeline in another process, makes a predictor of its own."""
        return self.__dict__ | {"_predictor": None, "_settings": {}, "_lock": None, "_tokenizer_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _tokenizer_lock=threading.Lock())

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write adapter, posterior and tokenizer into a folder that `transformers.pipeline` loads."""
        self.posterior.save_pretrained(save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    def own_parameters(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide arguments that are no options of `PredictionOptions` among preprocessing, forward and postprocessing.

        Default: all are the tokenizer's.
        """
        return arguments, {}, {}

    def _sanitize_parameters(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        asked = {name: arguments.pop(name) for name in self.option_names if name in arguments}
        self._refuse_unknown(arguments)
        options = self.options.updated(asked)
        check_options(options, self.posterior)  # before a text is read
        preprocess, forward, postprocess = self.own_parameters(**arguments)
        return preprocess, forward | {"options": options}, postprocess | {"options": options}

    def _refuse_unknown(self, arguments: Mapping[str, Any]) -> None:
        """Refuse a misspelt argument: transformers passes it to the tokenizer, which ignores it."""
        ours = [*self.option_names, *self.own_arguments, "batch_size"]
        is_asked = self.takes_tokenizer_arguments and self.tokenizer is not None
        tokenizers = list(inspect.signature(type(self.tokenizer).__call__).parameters) if is_asked else []
        for name in arguments:
            if name not in (*tokenizers, *self.own_arguments) or name in ("self", "kwargs"):
                if name in PredictionOptions.option_names():
                    raise SwagError(f"{self.swag_task} has no {name}=...: it is for predictions of one class for each example.")
                close = difflib.get_close_matches(name, ours + tokenizers, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                tokenizer = ", and neither does the tokenizer" if self.takes_text else ""
                raise SwagError(f"{self.swag_task} knows no argument {name!r}{tokenizer}.{hint}")

    def _forward(self, model_inputs: Mapping[str, Any], options: PredictionOptions, link: Link | None = None) -> dict[str, Any]:
        if "input_ids" in model_inputs:
            check_tokens(model_inputs["input_ids"], self.model)
        predictor = self._predictor_for(options, link)
        # transformers takes a list apart into the outputs of single inputs.
        return {"predictive": predictor.predict_rows(model_inputs)}

    def predictive_of(self, model_outputs: Mapping[str, Any]) -> Predictive | RegressionPredictive:
        """Return the prediction of one input, whose events are the N of the predictive."""
        predictive = model_outputs["predictive"]
        return predictive[0] if isinstance(predictive, list) else predictive

    def predicted_task(self) -> Task:
        """Return the task, with the settings in the posterior's record where that is for the same task."""
        return recorded_task(self.swag_task, self.posterior.record)

    def _predictor_for(self, options: PredictionOptions, link: Link | None) -> MonteCarloPredictor:
        """Return the predictor, made anew only where draws or method are others than those of the last call."""
        sampling = options.resolved(self.posterior)
        settings = {"sampling": replace(sampling, temperature=1.0), "method": options.method, "max_error": options.max_error}
        with self._lock:
            if self._predictor is None or self._settings != settings:
                self._predictor = MonteCarloPredictor(self.model, self.posterior, task=self.predicted_task(), **settings)
                self._settings = settings
            predictor = self._predictor
        link = link or predictor.link
        if link != "identity":
            return predictor.with_output(link=link, temperature=sampling.temperature)
        if options.sampling.get("temperature") is not None:
            raise SwagError("temperature=... turns into probabilities what here stays a number; leave it out.")
        return predictor.with_output(link=link)


def check_top_k(top_k: object) -> None:
    """Check how many labels or choices a prediction is to have.

    Raises:
        SwagError: It is neither None nor a whole number of at least 1.
    """
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1):
        raise SwagError(f"top_k must be a whole number of at least 1, or None for all, got {shortened(repr(top_k))}.")


def _loaded(tokenizer: Any, model: Any) -> Any:
    """Return the tokenizer, for what `transformers.pipeline` takes as one: a tokenizer, its name, or a name and arguments for loading it."""
    source = getattr(model, "swag_tokenizer", None)
    if isinstance(tokenizer, (str, tuple)):
        name, options = (tokenizer, {}) if isinstance(tokenizer, str) else tokenizer
        options = {"token": source.hub.get("token") if source else None, **options}
        refuse_remote_code(name, options.pop("trust_remote_code", None))
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    if tokenizer is None and source is None:
        raise SwagError(
            f"The model {type(model).__name__} was not loaded by this pipeline, so its tokenizer cannot be determined: pass tokenizer=..."
        )
    return source.load() if tokenizer is None else tokenizer
