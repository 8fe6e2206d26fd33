"""Where a posterior comes from: the facts that travel in its file beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints

from swag_trainer.errors import PosteriorFormatError


@dataclass(frozen=True)
class Provenance:
    """How a posterior was collected and what it belongs to.

    Attributes:
        num_collected: How many weight vectors went into it.
        num_skipped: How many were left out because a weight was not finite.
        schedule: The collection schedule, as it prints.
        first_step, last_step: Optimizer steps of the first and the last collection.
        first_learning_rate, last_learning_rate: Learning rate at these steps; None where there was no scheduler.
        scale: Factor of the covariance that the posterior asks to be used with.
        base_model: Hub id or folder of the base model.
        base_revision: Commit of the base model, where it came from the Hub.
        labels: Names of the classes, in the order of the logits.
        problem_type: "single_label_classification", "multi_label_classification", "regression", or None for transformers' rule.
        initialisation: How the adapter was initialised where that changed the base weights (OLoRA, PiSSA, ...), else None.
        adapter_digest: Content digest of the adapter the posterior lies beside.
        versions: Versions of the libraries that collected it.
    """

    num_collected: int
    schedule: str
    first_step: int
    last_step: int
    num_skipped: int = 0
    first_learning_rate: float | None = None
    last_learning_rate: float | None = None
    scale: float = 1.0
    base_model: str | None = None
    base_revision: str | None = None
    labels: list[str] | None = None
    problem_type: str | None = None
    initialisation: str | None = None
    adapter_digest: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def as_document(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str) -> Provenance:
        """Read what `as_document` returned; nothing in the document is trusted to have the right type.

        Raises:
            PosteriorFormatError: A fact is missing, unknown or of another type.
        """
        hints = get_type_hints(cls)
        names = {item.name for item in fields(cls)}
        if not isinstance(document, dict) or set(document) != names:
            found = sorted(document) if isinstance(document, dict) else type(document).__name__
            raise PosteriorFormatError(f"{where} should state {sorted(names)}, it states {str(found)[:300]}.")
        for name, value in document.items():
            if not _fits(value, hints[name]):
                raise PosteriorFormatError(f"{where} states {name}={str(value)[:100]!r}; expected {hints[name]}.")
        if document["num_collected"] < 2 or not 0 <= document["scale"] < float("inf"):
            raise PosteriorFormatError(
                f"{where} states num_collected={document['num_collected']} and scale={document['scale']}."
            )
        return cls(**document)


def _fits(value: object, hint: Any) -> bool:
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint == float | None:
        return value is None or _fits(value, float)
    if hint == list[str] | None:
        return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if hint == dict[str, str]:
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return isinstance(value, str) or (value is None and hint is not str)
