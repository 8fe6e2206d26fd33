"""Predictions of every method for every example as a Parquet file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.metrics.ood import uncertainty_scores
from swag_trainer.posterior.atomic import write_bytes


def predictions_to_parquet(
    path: str | Path,
    methods: Mapping[str, MethodPredictions],
    labels: ArrayLike,
    *,
    texts: Sequence[str] | None = None,
    ood_texts: Sequence[str] | None = None,
    clusters: ArrayLike | None = None,
) -> None:
    """Write the predictions of each method for each example, whole or not at all.

    Columns: method, row, is_ood, label, prediction, correct, confidence (the largest probability), entropy (nats), mutual_information
    (nats), energy, ood_score, probabilities (a list), text (where texts are given). Out-of-distribution (OOD) examples have no label and
    are neither right nor wrong; a single draw has no mutual information; a method without an energy or an OOD score has none in its rows.

    Args:
        path: The file.
        methods: Predictions by the name of the method, all for the same examples.
        labels: True classes of the in-distribution examples. Shape (N,).
        texts: Their texts. N of them.
        ood_texts: Those of the out-of-distribution examples. M of them.
        clusters: Number of the example that each label belongs to, where examples have several; a column "example" then holds it. Shape (N,).

    Raises:
        ImportError: The pyarrow library is not installed.
        OSError: The file cannot be written.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("A Parquet file needs the pyarrow library: pip install pyarrow.") from error
    parts = []
    for name, predictions in methods.items():
        scores = predictions.ood_scores
        inside = {score: values for score, (values, _) in scores.items()}
        rows = _rows(
            name, predictions.probabilities, predictions.mutual_information, inside, np.asarray(labels), texts, clusters
        )
        parts.append(rows)
        if predictions.ood_probabilities is not None:
            outside = {score: values for score, (_, values) in scores.items()}
            rows = _rows(
                name, predictions.ood_probabilities, predictions.ood_mutual_information, outside, None, ood_texts, None
            )
            parts.append(rows)
    table = pa.concat_tables(pa.table(part, schema=_schema(pa)) for part in parts)
    if texts is None and ood_texts is None:
        table = table.drop_columns(["text"])
    if clusters is None:
        table = table.drop_columns(["example"])
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(Path(path), buffer.getvalue())


def _rows(
    name: str,
    probabilities: np.ndarray,
    information: np.ndarray | None,
    scores: Mapping[str, np.ndarray | None],
    labels: np.ndarray | None,
    texts: Sequence[str] | None,
    clusters: ArrayLike | None,
) -> dict[str, Any]:
    predictions = probabilities.argmax(axis=1)
    count = len(probabilities)
    absent = [None] * count
    return {
        "method": [name] * count,
        "row": np.arange(count),
        "example": absent if clusters is None else np.asarray(clusters),
        "is_ood": np.full(count, labels is None),
        "label": absent if labels is None else labels,
        "prediction": predictions,
        "correct": absent if labels is None else predictions == labels,
        "confidence": probabilities.max(axis=1),
        "entropy": uncertainty_scores(probabilities)["entropy"],
        "mutual_information": absent if information is None else information,
        "energy": scores.get("energy", absent),
        "ood_score": scores.get("ood_score", absent),
        "probabilities": list(probabilities),
        "text": absent if texts is None else texts,
    }


def _schema(pa: Any) -> Any:
    return pa.schema(
        {
            "method": pa.string(),
            "row": pa.int64(),
            "example": pa.int64(),
            "is_ood": pa.bool_(),
            "label": pa.int64(),
            "prediction": pa.int64(),
            "correct": pa.bool_(),
            "confidence": pa.float64(),
            "entropy": pa.float64(),
            "mutual_information": pa.float64(),
            "energy": pa.float64(),
            "ood_score": pa.float64(),
            "probabilities": pa.list_(pa.float64()),
            "text": pa.string(),
        }
    )
