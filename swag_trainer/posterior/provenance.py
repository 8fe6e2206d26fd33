"""Where a posterior comes from: the facts that travel in its file beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.facts import read_facts
from swag_trainer.posterior.tuning import Tuning


@dataclass(frozen=True)
class Provenance:
    """How a posterior was collected and what it belongs to.

    Attributes:
        num_collected: How many weight vectors went into it.
        num_skipped: How many were left out because a weight was not finite.
        schedule: The collection schedule, as it prints.
        acceptance: The rule that accepted or rejected snapshots, as it prints; None where all were taken.
        first_step, last_step: Optimizer steps of the first and the last collection.
        first_learning_rate, last_learning_rate: Learning rate at these steps; None where there was no scheduler.
        steps, learning_rates, deviation_norms: Of every snapshot in turn: its optimizer step, the rate there, and the length of its
            deviation from the mean as it stood.
        diagnostics: What the trajectory says about the posterior, see `swag_trainer.collection.diagnostics`.
        scale: Factor of the covariance that the posterior asks to be used with.
        tuning: What was chosen and calibrated at that scale on held-out data; None for a posterior that was not tuned.
        base_model: Hub id or folder of the base model.
        base_revision: Commit of the base model, where it came from the Hub.
        labels: Names of the classes, in the order of the logits.
        problem_type: "single_label_classification", "multi_label_classification", "regression", or None for transformers' rule.
        pad_token_id: Number of the padding token, by which a decoder finds a text's last token; None where the config has none.
        initialisation: How the adapter was initialised where that changed the base weights (OLoRA, PiSSA, ...), else None.
        base_fingerprint: A few numbers for each base weight that the initialisation changed, to tell whether another process
            changed it the same way.
        adapter_digest: Content digest of the adapter the posterior lies beside.
        versions: Versions of the libraries that collected it.
    """

    num_collected: int
    schedule: str
    first_step: int
    last_step: int
    num_skipped: int = 0
    acceptance: str | None = None
    first_learning_rate: float | None = None
    last_learning_rate: float | None = None
    steps: list[int] = field(default_factory=list)
    learning_rates: list[float | None] = field(default_factory=list)
    deviation_norms: list[float] = field(default_factory=list)
    diagnostics: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    tuning: Tuning | None = None
    base_model: str | None = None
    base_revision: str | None = None
    labels: list[str] | None = None
    problem_type: str | None = None
    pad_token_id: int | None = None
    initialisation: str | None = None
    base_fingerprint: dict[str, list[float]] = field(default_factory=dict)
    adapter_digest: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def as_document(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str) -> Provenance:
        """Read what `as_document` returned; nothing in the document is trusted to have the right type.

        A fact that an earlier version did not know yet keeps its default; one that this version does not know is refused.

        Raises:
            PosteriorFormatError: A fact is missing, unknown or of another type.
        """
        provenance = read_facts(cls, document, where=where)
        if provenance.num_collected < 2 or not 0 <= provenance.scale < float("inf"):
            raise PosteriorFormatError(f"{where} states num_collected={provenance.num_collected} and scale={provenance.scale}.")
        return provenance
