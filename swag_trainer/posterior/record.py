"""What a posterior belongs to and how it is to be used: the record that travels in its file, the same for every family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from swag_trainer.errors import PosteriorFormatError
from swag_trainer.posterior.documents import read_dataclass
from swag_trainer.posterior.features import FeatureDistribution
from swag_trainer.posterior.tensor_file import MAX_MAGNITUDE
from swag_trainer.posterior.tuning import Tuning, upgraded


@dataclass(frozen=True)
class PosteriorRecord:
    """What a posterior belongs to and how it is to be used.

    Attributes:
        scale: Factor of the covariance that the posterior asks to be used with.
        tuning: What was chosen and calibrated at that scale on held-out data; None for a posterior that was not tuned.
        base_model: Hub id or folder of the base model.
        base_revision: Commit of the base model, where it came from the Hub.
        gguf_file: Name of the GGUF file in the base model's folder or repository that holds its weights; None where they lie as usual.
        task: Name of the task it was made for, such as "swag-text-classification"; None where that is not known.
        task_settings: How it was trained for that task, by the names of the task's settings; empty where it has none.
        labels: Names of the classes, in the order of the logits.
        problem_type: "single_label_classification", "multi_label_classification", "regression", or None for transformers' rule.
        pad_token_id: Number of the padding token, by which a decoder finds a text's last token; None where the config has none.
        initialisation: How the adapter was initialised where that changed the base weights (OLoRA, PiSSA, ...), else None.
        base_fingerprint: A few numbers for each base weight that the initialisation changed, to tell whether another process
            changed it the same way.
        adapter_digest: Content digest of the adapter the posterior lies beside.
        adapter_settings: Its settings that change what it computes, see `swag_trainer.posterior.adapter_settings.settings_of`; None in
            files of earlier versions.
        versions: Versions of the libraries that made it.
        features: Class means and covariance of the features at the mean weights, for the OOD score; None where they were not fitted.
            Stored as tensors beside the document, and no part of it.
    """

    scale: float = 1.0
    tuning: Tuning | None = None
    base_model: str | None = None
    base_revision: str | None = None
    gguf_file: str | None = None
    task: str | None = None
    task_settings: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    labels: list[str] | None = None
    problem_type: str | None = None
    pad_token_id: int | None = None
    initialisation: str | None = None
    base_fingerprint: dict[str, list[float]] = field(default_factory=dict)
    adapter_digest: str | None = None
    adapter_settings: dict[str, str] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    features: FeatureDistribution | None = field(default=None, compare=False)

    @classmethod
    def field_names(cls) -> set[str]:
        """Return the names of all fields of the document."""
        return {item.name for item in fields(cls)} - {"features"}

    def as_document(self) -> dict[str, Any]:
        """Return the record as JSON values, without the features."""
        document = asdict(replace(self, features=None))
        del document["features"]
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str) -> PosteriorRecord:
        """Read what `as_document` returned; nothing in the document is trusted to have the right type.

        A field that an earlier version did not know yet keeps its default; one that this version does not know is refused.

        Raises:
            PosteriorFormatError: A field is missing, unknown or of another type.
        """
        if isinstance(document, dict) and isinstance(document.get("tuning"), dict):
            document = {**document, "tuning": upgraded(document["tuning"])}
        record = read_dataclass(cls, document, where=where)
        if not 0 <= record.scale < MAX_MAGNITUDE:
            raise PosteriorFormatError(f"{where} states scale={record.scale}.")
        if record.pad_token_id is not None and not -1 <= record.pad_token_id < 2**31:
            raise PosteriorFormatError(f"{where} states pad_token_id={str(record.pad_token_id)[:50]}, which no token has.")
        return record
