"""A folder, here or on the Hub, that holds an adapter and its posterior: written together, read together, checked to belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from swag_trainer.errors import AdapterMismatchError, PosteriorNotFoundError
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.hub import download
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.packing import pack, unpack
from swag_trainer.posterior.plain_lora import InitialLora
from swag_trainer.posterior.provenance import Provenance
from swag_trainer.posterior.saved_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SavedAdapter
from swag_trainer.posterior.storage import check_finite, encode, read_file, write_together

POSTERIOR_FILE = "swag_posterior.safetensors"


class PosteriorParts(NamedTuple):
    """What a `SwagPosterior` is made of, in its order."""

    layout: WeightLayout
    gaussian: LowRankGaussian
    provenance: Provenance
    adapter: SavedAdapter
    initial: InitialLora | None


def write_folder(folder: Path, parts: PosteriorParts) -> None:
    """Write adapter and posterior, each file whole or not at all; where one does not fit on the disk none is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = parts.adapter
    provenance = replace(parts.provenance, adapter_digest=adapter.digest, base_model=adapter.base_model)
    tensors = pack(parts.layout, parts.gaussian) | ({} if parts.initial is None else parts.initial.as_tensors())
    data, _ = encode(tensors, provenance.as_document())
    files = adapter.files() | {POSTERIOR_FILE: data}
    write_together({folder / name: content for name, content in files.items()})


def find_folder(name_or_path: str | Path, **hub: Any) -> Path:
    """Return the folder itself, or that of a download.

    Args:
        name_or_path: A folder, or "user/name" on the Hub.
        hub: As for `swag_trainer.posterior.hub.download`.

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


def read_folder(folder: Path) -> PosteriorParts:
    """Read what lies in a folder.

    Raises:
        PosteriorFormatError: A file is damaged, of a newer format, or its values cannot be those of a posterior.
    """
    path = folder / POSTERIOR_FILE
    tensors, document, _ = read_file(path)
    provenance = Provenance.from_document(document, where=repr(str(path)))
    initial = InitialLora.from_tensors(tensors, where=repr(str(path)))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(("initial/", "pristine/"))}
    layout, gaussian = unpack(tensors, num_collected=provenance.num_collected, where=repr(str(path)))
    adapter = SavedAdapter.read(folder)
    check_finite(adapter.tensors, folder / ADAPTER_WEIGHTS)
    return PosteriorParts(layout, gaussian, provenance, adapter, initial)


def check_pair(parts: PosteriorParts, where: str, *, ignore_digest: bool) -> None:
    """Do nothing if posterior and adapter belong together.

    Args:
        parts: Both.
        where: Where they lie, for the message.
        ignore_digest: Accept an adapter or a base model other than the recorded one, whose weights have the same names and shapes.

    Raises:
        AdapterMismatchError: They do not.
    """
    layout, provenance, adapter = parts.layout, parts.provenance, parts.adapter
    lacking = sorted(set(layout.keys) - set(adapter.tensors))
    beside = WeightLayout.of({key: adapter.tensors[key] for key in layout.keys if key in adapter.tensors})
    difference = layout.difference(beside, ours="The posterior", theirs="The adapter")
    if lacking or difference:
        raise AdapterMismatchError(f"The posterior in {where!r} is of another adapter than the one beside it. {difference}")
    problem = None
    if provenance.adapter_digest != adapter.digest:
        problem = (
            f"was saved beside an adapter with the digest {str(provenance.adapter_digest)[:12]}, the adapter there now has "
            f"{adapter.digest[:12]}"
        )
    elif provenance.base_model != adapter.base_model:
        problem = f"was collected on the base model {provenance.base_model!r}, adapter_config.json names {adapter.base_model!r}"
    if problem and not ignore_digest:
        raise AdapterMismatchError(
            f"The posterior in {where!r} {problem}: its uncertainty would be about other weights. Save both again "
            "(posterior.save_pretrained), or pass ignore_mismatched_adapter=True if you know that they belong together."
        )
