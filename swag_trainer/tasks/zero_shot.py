"""Zero-shot classification: how well labels of the call fit a text, by a classifier of natural-language inference (NLI)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from swag_trainer.errors import SwagError
from swag_trainer.tasks.sequence_classification import SequenceClassification


class ZeroShotClassification(SequenceClassification):
    """Pairs of a text and a hypothesis about it, with one event each, whose classes are those of NLI.

    The model is trained on NLI as a classifier of pairs of texts. `label_logits` makes of its logits those of the labels, draw by draw, as
    `transformers.ZeroShotClassificationPipeline` does for one model (Yin et al. 2019, arXiv:1909.00161).
    """

    name: ClassVar[str] = "swag-zero-shot-classification"
    hub_tag: ClassVar[str] = "zero-shot-classification"
    head: ClassVar[str | None] = None
    peft_task_type: ClassVar[str | None] = None


def entailment_id(config: Any) -> int:
    """Return the number of the class that says that a text implies a hypothesis: the one whose name begins with "entail".

    Raises:
        SwagError: There is none.
    """
    labels = {str(name): index for name, index in config.label2id.items()}
    found = next((index for name, index in labels.items() if name.lower().startswith("entail")), None)
    if found is None:
        raise SwagError(
            f"Zero-shot classification needs a model of natural-language inference, with a class whose name begins with 'entail'; this "
            f"one has {list(labels)[:10]}. Name its classes in label2id and id2label of the model's config before it is trained."
        )
    return found


def label_logits(logits: Tensor, config: Any, *, multi_label: bool) -> Tensor:
    """Return what the labels of one text are judged by, from the logits of its pairs.

    Args:
        logits: A pair for each label. Shape (S, n, C).
        config: Of the model.
        multi_label: Whether several labels may be right.

    Returns:
        For one right label the entailment logits, one event of n classes for a softmax: shape (S, 1, n). Else entailment less
        contradiction, n events of one class for a sigmoid: shape (S, n, 1). Contradiction is the first class, or the last one where that
        is entailment.
    """
    entailment = entailment_id(config)
    if not multi_label:
        return logits[:, None, :, entailment]
    contradiction = -1 if entailment == 0 else 0
    return (logits[..., entailment] - logits[..., contradiction])[..., None]
