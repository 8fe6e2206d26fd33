"""Questions about contexts, as SQuAD has them: rows of {"question": ..., "context": ..., "answers": {...}}, encoded as windows for a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from transformers import default_data_collator

from swag_trainer.cli.encoded import Encoded, EncodedTask
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.text_sources import Row
from swag_trainer.errors import SwagError


class Contexts(EncodedTask):
    """Windows of a context behind their question, each with two predictions: the token that the answer starts at, and the one that it ends at.

    Windows are those of the pipeline. One that does not hold the whole answer has that of no answer, as in training.
    """

    takes_ood: ClassVar[bool] = False
    unused_options: ClassVar[tuple[str, ...]] = ("labels", "text_column", "label_column")

    def __init__(self, options: TextOptions, classifier: Any) -> None:
        super().__init__(options, classifier)
        self.data_collator = default_data_collator  # a batch holds windows of one length

    def encode(self, rows: Sequence[Row], *, needs_labels: bool) -> Encoded:
        """Encode questions; the texts and the clusters of a window's two predictions are those of its question."""
        encoder = self.classifier.window_encoder()
        encoded, texts, groups = [], [], []
        for number, row in enumerate(rows):
            try:
                windows = encoder.training_rows(row.values)
            except SwagError as error:
                raise SwagError(f"The example in {row.where} cannot be used: {error}") from error
            encoded.extend(windows)
            texts.extend([str(row.values["question"])] * (2 * len(windows)))
            groups.extend([number] * len(windows))
        return Encoded(encoded, texts, np.repeat(groups, 2), np.array(groups))
