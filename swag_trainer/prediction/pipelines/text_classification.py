"""The pipeline "swag-text-classification": text in, averaged probabilities and their uncertainty out."""

from __future__ import annotations

from typing import Any

from transformers import TextClassificationPipeline
from transformers.pipelines.text_classification import ClassificationFunction

from swag_trainer.prediction.decisions import PredictionOptions
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification
from swag_trainer.prediction.pipelines.base import PosteriorPipeline, check_top_k
from swag_trainer.prediction.pipelines.label_scores import LabelScores, decision_for, link_of
from swag_trainer.prediction.transformers_internals import register_pipeline
from swag_trainer.tasks.sequence_classification import SequenceClassification


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
    under that key, the likeliest first. With ``top_k`` all this is in the first entry of the ranking, the others stay as they are. Where
    several labels may be right there are sets, which hold all of them with that probability, and no abstaining: no label is the likeliest.

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
        link = link_of(postprocess.get("function_to_apply"))
        return preprocess, forward | ({} if link is None else {"link": link}), postprocess

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        function_to_apply: ClassificationFunction | None = None,
        top_k: int | None = 1,
        _legacy: bool = True,
        options: PredictionOptions = PredictionOptions(),  # noqa: B008 - frozen
    ) -> Any:
        """Put the prediction of one input into transformers' form, and decide upon it."""
        config = self.model.config
        own = SequenceClassification().link(config)
        decision = decision_for(options, self.posterior, link_of(function_to_apply) or own, own=own)
        found = LabelScores.of(self.predictive_of(model_outputs), config.id2label)
        if top_k == 1 and _legacy:
            return found.decided(decision, [found.rows[int(found.scores.argmax())]], config.id2label)[0]
        rows = found.rows if _legacy else found.ranked(top_k)
        return found.decided(decision, rows, config.id2label)


register_pipeline(
    SwagTextClassificationPipeline,
    AutoSwagModelForSequenceClassification,
    peft_classes=("PeftModelForSequenceClassification", "PeftModel"),
)
