"""A folder, here or on the Hub, that holds an adapter and its posterior: written together, read together, checked to belong together."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from swag_trainer.errors import (
    AdapterMismatchError,
    PosteriorFormatError,
    PosteriorNotFoundError,
    SwagError,
    printable,
    shortened,
)
from swag_trainer.hub import download
from swag_trainer.posterior.adapter_settings import ADAPTER_CONFIG
from swag_trainer.posterior.atomic import Content, write_together
from swag_trainer.posterior.features import FeatureDistribution
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import ADAPTER_WEIGHTS, InitialWeights, SavedAdapter
from swag_trainer.posterior.storage import content_digest, encode, read_file
from swag_trainer.posterior.tensor_file import MAX_MAGNITUDE, check_finite, read_tensors

POSTERIOR_FILE = "swag_posterior.safetensors"
_MEMBER = re.compile(r"member-[0-9]+")


class Contents(NamedTuple):
    """What a folder holds, whatever the family of its posterior.

    Attributes:
        kind: Name of the family.
        record: What the posterior belongs to, with its features.
        metadata: What the family itself records, as JSON values.
        tensors: The family's tensors.
        adapter: The adapter beside it.
        plain_adapters: Further adapters for plain PEFT, by folder; written, and not read.
    """

    kind: str
    record: PosteriorRecord
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    adapter: SavedAdapter
    plain_adapters: Mapping[str, SavedAdapter] = {}


def write_folder(folder: Path, contents: Contents) -> None:
    """Write adapter and posterior, each file whole or not at all; where one does not fit on the disk none is replaced.

    Before they replace what is there, both are read back as another process would read them, tensor by tensor and without a second copy
    in memory.

    Raises:
        SwagError: The adapter is one that no other process can load as it is here, or what was written cannot be read.
    """
    adapter, record = contents.adapter, contents.record
    if not adapter.is_reproducible:
        raise SwagError(
            f"The adapter was initialised with {record.initialisation!r}, which changed the base model in memory in a way that no other "
            "process repeats: saved, it would give other predictions. Save it as plain LoRA: "
            "swag_trainer.to_plain_lora(posterior).save_pretrained(...)."
        )
    folder.mkdir(parents=True, exist_ok=True)
    record = replace(record, adapter_digest=adapter.digest, adapter_settings=adapter.settings, base_model=adapter.base_model)
    document = {"kind": contents.kind, "record": record.as_document(), "metadata": dict(contents.metadata)}
    initial = {} if adapter.initial is None else adapter.initial.as_tensors()
    features = {} if record.features is None else record.features.tensors()
    data, digest = encode({**contents.tensors, **initial, **features}, document)
    files: dict[Path, Content] = {}
    for name, other in contents.plain_adapters.items():
        (folder / name).mkdir(exist_ok=True)
        files |= {folder / name / file: content for file, content in other.files().items()}
    files |= {folder / file: content for file, content in adapter.files().items()}

    def check(written: Mapping[Path, Path]) -> None:
        try:
            _read_back(written[folder / POSTERIOR_FILE], digest, written[folder / ADAPTER_WEIGHTS], adapter.digest)
        except PosteriorFormatError as error:
            raise SwagError(
                f"What would be saved in {str(folder)!r} cannot be read back, and the files there stay as they were. {error} The posterior "
                "is still in memory; save it elsewhere, or look for what made its values so."
            ) from error

    write_together(files | {folder / POSTERIOR_FILE: data}, check=check)
    _remove_members(folder, kept=contents.plain_adapters)


def member_folder(number: int) -> str:
    """Return the name of the folder that holds the adapter of a member of a mixture."""
    return f"member-{number}"


def _remove_members(folder: Path, *, kept: Collection[str]) -> None:
    """Remove adapters of members that a mixture, which was saved here before, had; other files stay, and their folder with them."""
    for path in folder.iterdir():
        if _MEMBER.fullmatch(path.name) and path.name not in kept and path.is_dir() and not path.is_symlink():
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                (path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else lies there
                path.rmdir()


def _read_back(posterior: Path, digest: str, weights: Path, adapter_digest: str) -> None:
    """Read the two files that were written, as `read_folder` does.

    Raises:
        PosteriorFormatError: They cannot be read, or hold something else.
    """
    own, document, found = read_file(posterior, mapped=True)
    check_finite(own, posterior, below=MAX_MAGNITUDE)
    PosteriorRecord.from_document(_parts(document, str(posterior))[1], where=str(posterior))
    tensors, _ = read_tensors(weights, mapped=True)
    check_finite(tensors, weights, below=MAX_MAGNITUDE)
    if (found, content_digest(tensors)) != (digest, adapter_digest):
        raise PosteriorFormatError(f"The files in {str(posterior.parent)!r} do not hold what was written.")


def find_folder(name_or_path: str | Path, **hub: Any) -> Path:
    """Return the folder itself, or that of a download.

    Args:
        name_or_path: A folder, or "user/name" on the Hub.
        hub: As for `swag_trainer.hub.download`.

    Raises:
        PosteriorNotFoundError: No posterior there, or not to be reached.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        return download(str(name_or_path), (POSTERIOR_FILE, ADAPTER_CONFIG, ADAPTER_WEIGHTS), **hub)
    if not (folder / POSTERIOR_FILE).exists():
        raise PosteriorNotFoundError(
            f"The folder {str(folder)!r} has no {POSTERIOR_FILE}. Collect a posterior with SwagCallback and save it there, "
            'or use the "text-classification" task for a plain adapter.'
        )
    return folder


def read_folder(folder: Path) -> Contents:
    """Read what a folder holds.

    Raises:
        PosteriorFormatError: A file is damaged, of a newer format, or its values cannot be those of a posterior.
    """
    path = folder / POSTERIOR_FILE
    where = repr(str(path))
    tensors, document, _ = read_file(path)
    kind, record, metadata = _parts(document, where)
    adapter = SavedAdapter.read(folder)
    check_finite(tensors, path, below=MAX_MAGNITUDE)
    check_finite(adapter.tensors, folder / ADAPTER_WEIGHTS, below=MAX_MAGNITUDE)
    adapter = replace(adapter, initial=InitialWeights.from_tensors(tensors, where=where))
    others = (InitialWeights, FeatureDistribution)
    own = {name: tensor for name, tensor in tensors.items() if not any(other.owns(name) for other in others)}
    features = FeatureDistribution.from_tensors(tensors, where=where)
    found = replace(PosteriorRecord.from_document(record, where=where), features=features)
    return Contents(kind, found, metadata, own, adapter)


def check_pair(
    layout: WeightLayout, record: PosteriorRecord, adapter: SavedAdapter, where: str, *, ignore_digest: bool
) -> None:
    """Do nothing if posterior and adapter belong together.

    Args:
        layout, record: Of the posterior.
        adapter: The adapter beside it.
        where: Where they lie, for the message.
        ignore_digest: Accept an adapter or a base model other than the recorded one, whose weights have the same names and shapes.

    Raises:
        AdapterMismatchError: They do not.
    """
    lacking = sorted(set(layout.keys) - set(adapter.tensors))
    beside = WeightLayout.of({key: adapter.tensors[key] for key in layout.keys if key in adapter.tensors})
    difference = layout.difference(beside, ours="The posterior", theirs="The adapter")
    if lacking or difference:
        raise AdapterMismatchError(f"The posterior in {where!r} is of another adapter than the one beside it. {difference}")
    problem = None
    if record.adapter_digest != adapter.digest:
        problem = (
            f"was saved beside an adapter with the digest {str(record.adapter_digest)[:12]}, the adapter there now has "
            f"{adapter.digest[:12]}"
        )
    elif record.adapter_settings is not None and record.adapter_settings != adapter.settings:
        problem = _changed_setting(record.adapter_settings, adapter.settings)
    elif record.base_model != adapter.base_model:
        problem = f"was collected on the base model {record.base_model!r}, adapter_config.json names {adapter.base_model!r}"
    if problem and not ignore_digest:
        raise AdapterMismatchError(
            f"The posterior in {where!r} {problem}: its uncertainty would be about other weights. Save both again "
            "(posterior.save_pretrained), or pass ignore_mismatched_adapter=True (--ignore-mismatched-adapter on the command line) if you "
            "know that they belong together."
        )
    if record.adapter_settings is None:
        warnings.warn(
            f"The posterior in {where!r} was saved by an earlier version, which did not record the adapter's settings: whether "
            f"{ADAPTER_CONFIG} was changed since cannot be checked. Save it again: load_posterior(...).save_pretrained(...).",
            stacklevel=3,
        )


def _changed_setting(recorded: Mapping[str, str], found: Mapping[str, str]) -> str:
    name = min(name for name in {*recorded, *found} if recorded.get(name) != found.get(name))
    shown, then, now = (
        shortened(printable(text)) for text in (name, recorded.get(name, "not set"), found.get(name, "not set"))
    )
    return f"was saved beside an adapter with {shown}={then}, {ADAPTER_CONFIG} now states {shown}={now}"


def _parts(document: Any, where: str) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """Take a file's document apart into kind, record and metadata; format version 1 knew SWAG alone and had them in one object."""
    if not isinstance(document, dict):
        raise PosteriorFormatError(f"{where} should hold a JSON object, it holds a {type(document).__name__}.")
    if "kind" not in document:
        record = {name: value for name, value in document.items() if name in PosteriorRecord.field_names()}
        return "swag", record, {name: value for name, value in document.items() if name not in record}
    kind, record, metadata = (document.get(name) for name in ("kind", "record", "metadata"))
    if not isinstance(kind, str) or not isinstance(record, dict) or not isinstance(metadata, dict) or len(document) != 3:
        raise PosteriorFormatError(f"{where} should state kind, record and metadata, it states {str(sorted(document))[:300]}.")
    return kind, record, metadata
