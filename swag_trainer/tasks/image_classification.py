"""Image classification: one label, several labels or numbers for an image."""

from __future__ import annotations

from typing import ClassVar

from transformers import AutoModelForImageClassification

from swag_trainer.tasks.sequence_classification import SequenceClassification


class ImageClassification(SequenceClassification):
    """Images with one event each; everything else is as for texts.

    One draw costs the patches of an image, see `swag_trainer.tasks.base.positions_of_images`. The features of the OOD score are what the
    head is given. PEFT has no task type for images: ``LoraConfig(target_modules=[...], modules_to_save=["classifier"])``.
    """

    name: ClassVar[str] = "swag-image-classification"
    hub_tag: ClassVar[str] = "image-classification"
    auto_model: ClassVar[type] = AutoModelForImageClassification
    head: ClassVar[str | None] = "ForImageClassification"
    peft_task_type: ClassVar[str | None] = None
