"""The pipeline "swag-text-classification": text in, averaged probabilities and their uncertainty out."""

from __future__ import annotations

from typing import Any

from transformers import TextClassificationPipeline
from transformers.pipelines.text_classification import ClassificationFunction

from swag_trainer.errors import SwagError
from swag_trainer.prediction.decisions import PredictionOptions, decide
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification
from swag_trainer.prediction.pipelines.base import PosteriorPipeline, check_top_k
from swag_trainer.prediction.predictive import RegressionPredictive
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks.base import Link
from swag_trainer.tasks.sequence_classification import SequenceClassification

_LINKS: dict[ClassificationFunction, Link] = {
    ClassificationFunction.SOFTMAX: "softmax",
    ClassificationFunction.SIGMOID: "sigmoid",
    ClassificationFunction.NONE: "identity",
}


class SwagTextClassificationPipeline(PosteriorPipeline, TextClassificationPipeline):
    """Text classification with the predictions of S weight draws averaged.

    Everything that `transformers.TextClassificationPipeline` takes and returns holds here too (``top_k``, text pairs, ``truncation``,
    ``padding``, ``batch_size``, ``function_to_apply``, data sets and generators). Each prediction also has its ``entropy`` and its
    ``mutual_information`` in nats, and its ``ood_score`` where the posterior has one: the fraction of held-out examples that lie closer to
    the nearest class, by their features at the mean weights, which cost one forward. Those of a mixture have ``between_members``, the
    part of the mutual information that its members' averages disagree about. For a regression model it has the draws' ``std``.

        from transformers import pipeline
        import swag_trainer

        classify = pipeline("swag-text-classification", model="me/roberta-sst2-swag", num_samples=10, seed=0)
        classify("A quietly devastating film.")
        # [{'label': 'positive', 'score': 0.94, 'entropy': 0.23, 'mutual_information': 0.02}]

    An unreliable prediction is withheld: with ``abstain_below``, ``risk`` or ``coverage``, which exclude each other, ``label`` is None where
    the likeliest label's score is too low. The label is then under ``top_label`` and a sentence under ``reason``; score and uncertainty
    stay, and a prediction that is not withheld has neither of the two keys. So it is with ``ood``, alone or beside one of the others, where
    the text is out-of-distribution. With ``prediction_set`` the labels that cannot be ruled out are
    under that key, the likeliest first. With ``top_k`` all this is in the first entry of the ranking, the others stay as they are. For
    classes that exclude each other only.

    Args:
        model: The PEFT model. One that `transformers.pipeline` loads brings its posterior along.
        posterior: The posterior, of any kind, for a model that has none attached.
        tokenizer: A tokenizer or its name. Default: for a model that was loaded with its posterior, the one beside the adapter, or
            the base model's where there is none.
        num_samples: S, how many draws; this and all below here or in the call. Default: as many as `swag_trainer.tune` took, or 10.
        seed: The draws depend on this alone. Default: the seed of `swag_trainer.tune`, or 0.
        scale: Factor of the covariance; None for the posterior's own, 0 for one pass at the centre.
        temperature, dropout, center: As in `Sampling`: None for what `swag_trainer.tune` chose.
        design: As in `Sampling`. Default: the one that `swag_trainer.tune` drew with, or "matched".
        method: "monte_carlo" or "linearized", as in `MonteCarloPredictor`.
        max_error: Draw for each text until the standard error of its probabilities is below this, as in `MonteCarloPredictor`.
        abstain_below: A score to abstain below; 0 never does.
        risk: Largest fraction of wrong predictions among those not withheld, one of the ``risks`` that the posterior was tuned with.
        coverage: Fraction of texts to predict, one of the ``coverages`` that the posterior was tuned with.
        ood: An OOD score to abstain from, such as 0.95: texts of the held-out examples' distribution are then withheld with a probability
            of at most 0.05. 1 never does.
        prediction_set: Fraction of the sets that hold the true label, one of the ``levels`` that the posterior was tuned with.
        prediction_set_method: "lac" (default), "aps" or "raps", see `swag_trainer.metrics.calibrate_conformal`. Sets of "lac" are the
            smallest on average and may be empty; those of the other two hold all labels where there are two classes and the accuracy is
            below the level.
        **kwargs: What `transformers.TextClassificationPipeline` takes. An argument that neither it nor the tokenizer knows is refused.

    Attributes:
        posterior, options: See `PosteriorPipeline`.

    Raises:
        PosteriorNotFoundError: The model has no posterior.
        SwagError: An argument is unknown or out of range, or needs a posterior that was tuned, with these draws and for this level.
    """

    swag_task = SequenceClassification.name
    own_arguments = ("function_to_apply", "top_k")

    def own_parameters(
        self, function_to_apply: str | None = None, top_k: int | None | str = "", **tokenizer: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Divide arguments as transformers' pipeline does; the forward has to know the function to apply."""
        if top_k != "":
            check_top_k(top_k)
        preprocess, forward, postprocess = TextClassificationPipeline._sanitize_parameters(
            self, function_to_apply, top_k, **tokenizer
        )
        function = postprocess.get("function_to_apply")
        return preprocess, forward | ({"link": _LINKS[function]} if function in _LINKS else {}), postprocess

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        function_to_apply: ClassificationFunction | None = None,
        top_k: int | None = 1,
        _legacy: bool = True,
        options: PredictionOptions = PredictionOptions(),  # noqa: B008 - frozen
    ) -> Any:
        """Put the prediction of one input into transformers' form, and decide upon it."""
        config, predictive = self.model.config, self.predictive_of(model_outputs)
        link = _LINKS[function_to_apply] if function_to_apply in _LINKS else SequenceClassification().link(config)
        decision, ood_score = decide(options, self.posterior), None
        if decision and link != "softmax":
            raise SwagError(
                "Abstaining and prediction sets are for classes that exclude each other, whose probabilities sum to 1; these predictions "
                f"are {'plain numbers' if link == 'identity' else 'judged label by label'}."
            )
        if isinstance(predictive, RegressionPredictive):
            scores, extra = predictive.mean[0], [{"std": float(std)} for std in predictive.std[0]]
        else:
            uncertainty = {
                "entropy": float(predictive.entropy[0]),
                "mutual_information": float(predictive.mutual_information[0]),
            }
            if predictive.between_members is not None:
                uncertainty["between_members"] = float(predictive.between_members[0])
            if predictive.ood_score is not None:
                uncertainty["ood_score"] = ood_score = float(predictive.ood_score[0])
            scores, extra = predictive.probabilities[0], [uncertainty] * len(predictive.probabilities[0])
        rows = [{"label": config.id2label[index], "score": float(score), **extra[index]} for index, score in enumerate(scores)]
        if top_k == 1 and _legacy:
            best = [rows[int(scores.argmax())]]
            return decision.apply(best, scores, config.id2label, ood_score=ood_score)[0] if decision else best[0]
        if not _legacy:
            rows = sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k]
        return decision.apply(rows, scores, config.id2label, ood_score=ood_score) if decision else rows


register_pipeline(
    SwagTextClassificationPipeline,
    AutoSwagModelForSequenceClassification,
    peft_classes=("PeftModelForSequenceClassification", "PeftModel"),
)
