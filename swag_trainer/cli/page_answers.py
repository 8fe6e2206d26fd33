"""What the page says about a text: the pipeline's own figures, each draw's answer beside them, and the same in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from swag_trainer.adapters.keys import adapted_model, base_model
from swag_trainer.errors import SwagError
from swag_trainer.posterior.swag import SwagPosterior
from swag_trainer.prediction.decisions import Decision, Request, confidence, decide
from swag_trainer.prediction.predictive import Predictive
from swag_trainer.prediction.predictor import MonteCarloPredictor
from swag_trainer.tasks import task_named

if TYPE_CHECKING:
    from swag_trainer.prediction.pipelines.text_classification import SwagTextClassificationPipeline

MOST_CHARACTERS = 20_000
_WHERE_TUNED = (("risk", 0.05), ("coverage", 0.9))  # what the slider begins with: the tuned level nearest to this


@dataclass(frozen=True, eq=False)
class Answer:
    """Everything the page shows of one text.

    Attributes:
        labels: Names of the C classes, each only once.
        averaged: What the draws say on average, with its uncertainty; one row, with each draw's probabilities.
        mean: Probabilities of the posterior mean (SWA), at temperature 1. Shape (C,).
        trained: Probabilities of the adapter's own weights, where those are not the posterior mean; else None. Shape (C,).
    """

    labels: list[str]
    averaged: Predictive
    mean: np.ndarray
    trained: np.ndarray | None

    @property
    def probabilities(self) -> np.ndarray:
        """Averaged over the draws. Shape (C,)."""
        return self.averaged.probabilities[0]

    @property
    def draws(self) -> np.ndarray:
        """Of each draw. Shape (S, C)."""
        return self.averaged.draw_probabilities[:, 0]

    def likeliest(self, count: int) -> list[int]:
        """Return the classes with the highest averaged probability, the likeliest first."""
        return np.argsort(-self.probabilities, kind="stable")[:count].tolist()

    def by_name(self, probabilities: np.ndarray) -> dict[str, float]:
        """Return probabilities of shape (C,) as a dictionary."""
        return dict(zip(self.labels, probabilities.tolist(), strict=True))


class Answering:
    """Answers texts as a pipeline does, and keeps each draw's answer.

    Args:
        classify: The pipeline. Its draws, scale and temperature are used, those that it was given or those of its posterior.

    Raises:
        SwagError: The model's classes do not exclude each other, or it is a regression.
    """

    def __init__(self, classify: SwagTextClassificationPipeline) -> None:
        model, self.posterior = classify.model, classify.posterior
        config = base_model(adapted_model(model)).config
        if task_named(self.posterior.record.task).link(config) != "softmax":
            raise SwagError(
                "The page is for classes that exclude each other; this model is for several labels or a regression."
            )
        self.request = classify.request.resolved(self.posterior)
        self.first_decision = _first_decision(self.request, self.posterior)
        self.labels = _distinct([config.id2label[index] for index in range(config.num_labels)])
        self._tokenizer = classify.tokenizer
        self._longest = min(self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", math.inf))
        request = self.request
        self._swag = MonteCarloPredictor(
            model,
            self.posterior,
            num_samples=request.num_samples,
            seed=request.seed,
            scale=request.scale,
            temperature=request.temperature,
            progress=False,
        )
        self._mean = MonteCarloPredictor(model, self.posterior, scale=0, progress=False)
        self._trained = None
        if not holds_mean(self.posterior):
            self._trained = MonteCarloPredictor(model, _moved_to_adapter(self.posterior), scale=0, progress=False)

    @property
    def has_trained_weights(self) -> bool:
        """Whether the adapter's own weights are others than the posterior mean, and answer as well."""
        return self._trained is not None

    def __call__(self, text: str) -> Answer:
        """Answer one text.

        Raises:
            SwagError: There is no text, or more than the model reads.
        """
        if not text.strip():
            raise SwagError("There is nothing to classify: type a text.")
        if len(text) > MOST_CHARACTERS:
            raise SwagError(f"The text has {len(text):,} characters; this page takes {MOST_CHARACTERS:,} at most.")
        inputs = self._tokenizer(text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        if length > self._longest:
            raise SwagError(
                f"The text has {length} tokens, the model reads {self._longest}. Shorten it; nothing is cut off unseen."
            )
        return Answer(
            labels=self.labels,
            averaged=self._swag.predict(inputs, return_draws=True),
            mean=self._mean.predict(inputs).probabilities[0],
            trained=None if self._trained is None else self._trained.predict(inputs).probabilities[0],
        )

    def decision(self, threshold: float) -> Decision:
        """Return what is done at a threshold of the slider: the one it began with is itself also when it comes back rounded."""
        first = self.first_decision
        if math.isclose(threshold, first.threshold, abs_tol=5e-4):
            return first
        return Decision(threshold, "the threshold set on this page")


def holds_mean(posterior: SwagPosterior) -> bool:
    """Say whether the adapter's own weights are the posterior mean, as they are unless it was asked for ``final_weights="trained"``."""
    tensors = posterior.adapter.tensors
    return all(torch.equal(tensors[key].cpu(), mean.to(tensors[key].dtype)) for key, mean in posterior.mean.items())


def verdict(answer: Answer, decision: Decision) -> str:
    """Say whether the answer is given or the text is handed over to a person, and why."""
    names = dict(enumerate(answer.labels))
    best = answer.likeliest(1)[0]
    score = float(confidence(answer.probabilities[None])[0])
    row = decision.act([{"label": names[best], "score": score}], answer.probabilities, names)[0]
    if row["label"] is None:
        return f"Hand over to a person. {row['reason']} (It would have been: {row['top_label']}.)"
    if not decision:
        return f"Answer: {row['label']}. Its score is {score:.3f}; with a threshold of 0 everything is answered."
    return f"Answer: {row['label']}. Its score {score:.3f} is not below {decision.threshold:.3f}, {decision.because}."


def uncertainty(answer: Answer) -> str:
    """Put entropy and mutual information into words, with their values in nats."""
    entropy, information = float(answer.averaged.entropy[0]), float(answer.averaged.mutual_information[0])
    most, count = math.log(len(answer.labels)), len(answer.draws)
    how = _word(entropy / most, (0.1, "sure"), (0.35, "fairly sure"), (0.7, "unsure"), (2, "close to guessing"))
    lines = [f"Entropy {entropy:.3f} nats, of {most:.3f} at most for {len(answer.labels)} classes: {how}."]
    if count == 1:
        return lines[0] + "\nA single set of weights answered (scale 0), which cannot disagree with itself."
    share = information / entropy if entropy > 0 else 0.0
    why = _word(
        share,
        (0.05, "the draws agree, and what is open lies in the text as the model reads it"),
        (0.2, "the draws differ a little"),
        (2, "the draws disagree: the training data did not settle this"),
    )
    votes = int((answer.draws.argmax(axis=1) != answer.likeliest(1)[0]).sum())
    lines.append(f"Mutual information {information:.3f} nats, {share:.0%} of the entropy: {why}.")
    lines.append(f"{votes} of {count} draws put another class first.")
    return "\n".join(lines)


def circumstances(answering: Answering, name: str) -> str:
    """Say what answers here: which model, how many draws, and what it was tuned on."""
    posterior, request = answering.posterior, answering.request
    lines = [
        f"{name}, on {posterior.adapter.base_model or 'a base model without a name'}",
        f"{request.num_samples} draws (seed {request.seed}) of {posterior.num_collected} snapshots, rank {posterior.rank}; "
        f"scale {request.scale:g}, temperature {request.temperature:.3g}",
    ]
    tuning = posterior.tuning
    if tuning is None:
        lines.append(
            "Not tuned on held-out data: nobody has measured what a score means here, and a threshold promises nothing."
        )
    else:
        source = " ".join(filter(None, [repr(tuning.dataset), tuning.split]))
        lines.append(f"Tuned on {tuning.num_examples} rows of {source}, thresholds on {tuning.num_calibration} others.")
    if not answering.first_decision:
        lines.append("No calibrated threshold applies to these answers: the slider begins at 0, and nothing is handed over.")
    return "\n".join(lines)


def _first_decision(request: Request, posterior: SwagPosterior) -> Decision:
    """What the pipeline was told to do. Where it was told nothing: the threshold that `SwagPosterior.tune` calibrated for a risk near 5 %,
    where one could be promised, else for a coverage near 90 %; nothing where there is none for these draws."""
    told = decide(request, posterior)
    if told.threshold > 0 or posterior.tuning is None:
        return Decision(told.threshold, told.because)
    for goal, wanted in _WHERE_TUNED:
        records = [each for each in posterior.tuning.thresholds if each.goal == goal and each.threshold is not None]
        if records:
            nearest = min(records, key=lambda each: abs(each.target - wanted))
            try:
                return decide(request.updated({goal: nearest.target, "prediction_set": None}), posterior)
            except SwagError:  # calibrated for other draws, another scale or temperature
                return Decision()
    return Decision()


def _moved_to_adapter(posterior: SwagPosterior) -> SwagPosterior:
    """The posterior moved to the adapter's own weights: at scale 0 the predictor then answers with those."""
    own = posterior.layout.flatten({key: posterior.adapter.tensors[key] for key in posterior.layout.keys})
    return replace(posterior, gaussian=replace(posterior.gaussian, mean=own))


def _word(value: float, *steps: tuple[float, str]) -> str:
    return next(word for limit, word in steps if value < limit)


def _distinct(labels: list[str]) -> list[str]:
    """Number the classes that share a name: a dictionary would drop one."""
    return [f"{label} ({index})" if labels.count(label) > 1 else str(label) for index, label in enumerate(labels)]
