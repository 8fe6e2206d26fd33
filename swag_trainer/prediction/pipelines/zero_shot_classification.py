"""The pipeline "swag-zero-shot-classification": a text and labels in, averaged probabilities of the labels and their uncertainty out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import ZeroShotClassificationPipeline

from swag_trainer.adapters.positions import longest_input
from swag_trainer.errors import SwagError, shortened
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.decisions import PredictionOptions
from swag_trainer.prediction.lengths import count_truncated
from swag_trainer.prediction.loading import AutoSwagModelForZeroShotClassification
from swag_trainer.prediction.pipelines.base import PosteriorPipeline
from swag_trainer.prediction.tokenizers import check_tokens, encoding_errors
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks.sequence_classification import SequenceClassification
from swag_trainer.tasks.zero_shot import ZeroShotClassification, entailment_id, label_logits

_TEMPLATE = "This example is {}."
_OF_THE_CLASSES = ("abstain_below", "risk", "coverage", "ood", "prediction_set", "prediction_set_method")


class SwagZeroShotClassificationPipeline(PosteriorPipeline, ZeroShotClassificationPipeline):
    """Zero-shot classification by a classifier of natural-language inference, with the predictions of S weight draws averaged.

    Everything that `transformers.ZeroShotClassificationPipeline` takes and returns holds here too: ``candidate_labels`` as a list or
    with commas in between, ``hypothesis_template``, ``multi_label``, ``batch_size`` in pairs. The distribution over the labels is made
    for each draw and then averaged. Each prediction also has its ``entropy`` and ``mutual_information`` in nats; with several right
    labels these are lists, one for each label.

        from transformers import pipeline
        import swag_trainer

        classify = pipeline("swag-zero-shot-classification", model="me/roberta-mnli-swag", num_samples=10, seed=0)
        classify("Where is my parcel?", candidate_labels=["delivery", "payment"])
        # {'sequence': ..., 'labels': ['delivery', 'payment'], 'scores': [0.9, 0.1], 'entropy': 0.33, 'mutual_information': 0.02}

    Posteriors of "swag-text-classification" serve it, if one of their labels begins with "entail". What `swag_trainer.tune` chose of
    centre, scale and dropout is used. Its temperature is not, nor are its thresholds and sets: they are of the classes of NLI.

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, of any kind, for a model that has none attached.
        tokenizer: As in `PosteriorPipeline`.
        temperature: What each draw's logits of the labels are divided by; default: 1. Also in a call.
        **kwargs: Other options of `PredictionOptions` and what `transformers.ZeroShotClassificationPipeline` takes, in the constructor or a
            call.

    Attributes:
        posterior, options, num_truncated: See `PosteriorPipeline`.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range, or needs classes that are the same in every call; the model has no class
            for entailment.
    """

    swag_task = ZeroShotClassification.name
    other_tasks = (SequenceClassification.name,)
    own_arguments = ("candidate_labels", "hypothesis_template", "multi_label")

    def __init__(self, model: Any, *, posterior: WeightPosterior | None = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(model=model, posterior=posterior, tokenizer=tokenizer, **kwargs)
        entailment_id(self.model.config)  # refuses now what it would refuse with the first text

    def __call__(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict a text, a list of texts, a data set or a generator; the labels may be the second argument."""
        if len(args) == 1 and "candidate_labels" not in kwargs:
            kwargs["candidate_labels"] = args[0]
        elif args:
            raise SwagError(f"{self.swag_task} takes texts and candidate_labels, got {len(args)} arguments besides.")
        return super().__call__(sequences, **kwargs)

    def own_parameters(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide arguments as transformers' pipeline does; the tokenizer's are refused."""
        other = next((name for name in arguments if name not in self.own_arguments), None)
        if other is not None:
            raise SwagError(f"{self.swag_task} makes pairs of its own, so there is no argument {other!r} of the tokenizer.")
        template = arguments.get("hypothesis_template", _TEMPLATE)
        if not isinstance(template, str) or not _has_place(template):
            raise SwagError(
                f"hypothesis_template is a text with {{}} in the place of the label, got {shortened(repr(template))}."
            )
        if "candidate_labels" in arguments and not _are_labels(arguments["candidate_labels"]):
            raise SwagError(
                'candidate_labels are texts, in a list or with commas in between, such as ["delivery", "payment"]; got '
                f"{shortened(repr(arguments['candidate_labels']))}."
            )
        return ZeroShotClassificationPipeline._sanitize_parameters(self, **arguments)

    def preprocess(
        self, inputs: str, candidate_labels: Sequence[str] | None = None, hypothesis_template: str = _TEMPLATE
    ) -> Iterator[dict[str, Any]]:
        """Yield the model inputs of each pair of the text and a hypothesis. A text that is too long is cut, a hypothesis never."""
        if not candidate_labels:
            raise SwagError(f'{self.swag_task} needs the labels to choose from: candidate_labels=["...", "..."].')
        if not isinstance(inputs, str) or not inputs:
            raise SwagError(f"{self.swag_task} takes texts, got {shortened(repr(inputs))}.")
        was_noted = False
        for index, label in enumerate(candidate_labels):
            encoded = self._encoded(inputs, hypothesis_template.format(label))
            if count_truncated(encoded) and not was_noted:
                was_noted = True
                self.note_truncated(1)
            is_last = index == len(candidate_labels) - 1
            yield {"candidate_label": label, "sequence": inputs, "is_last": is_last, **encoded}

    def _encoded(self, text: str, hypothesis: str) -> Any:
        limit = longest_input(self.tokenizer, self.model)
        cut: dict[str, Any] = {} if limit is None else {"truncation": "only_first", "max_length": limit}
        with self._tokenizer_lock, encoding_errors():
            alone = len(self.tokenizer("", hypothesis)["input_ids"])
            if limit is not None and alone >= limit:
                raise SwagError(
                    f"The hypothesis {shortened(repr(hypothesis))} has {alone} tokens, and the model takes {limit} with a text: shorten it."
                )
            return self.tokenizer([[text, hypothesis]], return_tensors="pt", **cut)

    def _forward(self, model_inputs: Mapping[str, Any], options: PredictionOptions, link: Any = None) -> dict[str, Any]:
        check_tokens(model_inputs["input_ids"], self.model)
        logits = self._predictor_for(options, None).logits(model_inputs)
        # The pairs in front, as transformers takes a batch apart into the outputs of single pairs.
        kept = {name: model_inputs[name] for name in ("candidate_label", "sequence", "is_last")}
        return {"logits": logits.transpose(0, 1), **kept}

    def postprocess(
        self,
        model_outputs: Sequence[Mapping[str, Any]],
        multi_label: bool = False,
        options: PredictionOptions = PredictionOptions(),  # noqa: B008 - frozen
    ) -> dict[str, Any]:
        """Average the draws' distributions over the labels of one text, and put the result into transformers' form."""
        names = [outputs["candidate_label"] for outputs in model_outputs]
        logits = torch.cat([outputs["logits"] for outputs in model_outputs]).transpose(0, 1)  # (S, n, C)
        several = multi_label or len(names) == 1
        predictor = self._predictor_for(options, None).with_output(
            link="sigmoid" if several else "softmax", temperature=options.sampling.get("temperature") or 1.0
        )
        found: Any = predictor.summary(label_logits(logits, self.model.config, multi_label=several))
        scores = found.probabilities.reshape(-1)
        order = scores.argsort()[::-1].tolist()
        uncertainty = {"entropy": found.entropy, "mutual_information": found.mutual_information}
        return {
            "sequence": model_outputs[0]["sequence"],
            "labels": [names[index] for index in order],
            "scores": scores[order].tolist(),
            **{name: values[order].tolist() if several else float(values[0]) for name, values in uncertainty.items()},
        }

    def _sanitize_parameters(self, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        names = PredictionOptions.option_names()
        options = self.options.updated({name: value for name, value in arguments.items() if name in names})
        asked = [name for name in _OF_THE_CLASSES if getattr(options, name) is not None]
        if asked:
            raise SwagError(
                f"{asked[0]}=... is for classes that are the same in every prediction, and here each call brings its own labels. The scores "
                "of the prediction can be compared with a number of your own."
            )
        if options.method != "monte_carlo" or options.max_error is not None:
            raise SwagError(
                f"{self.swag_task} compares pairs under the same draws of the weights: it has method='monte_carlo' and no max_error."
            )
        return super()._sanitize_parameters(**arguments)


def _has_place(template: str) -> bool:
    """Return whether a format string has one place, without a name, for a label."""
    try:
        return template.format("x") != template
    except (LookupError, ValueError):
        return False


def _are_labels(given: Any) -> bool:
    if isinstance(given, str):
        return any(label.strip() for label in given.split(","))
    return isinstance(given, (list, tuple)) and len(given) > 0 and all(isinstance(label, str) for label in given)


register_pipeline(
    SwagZeroShotClassificationPipeline,
    AutoSwagModelForZeroShotClassification,
    peft_classes=("PeftModelForSequenceClassification", "PeftModel"),
)
