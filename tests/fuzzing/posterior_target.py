"""Target of the fuzzer: the posterior's own file."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from case_folders import Place, refused, with_mutated_header
from harness import WrongValuesError
from mutations import (
    mutated_bytes,
    mutated_json,
    mutated_tensors,
    parts_of,
    put_special,
)
from safetensors.torch import load as load_safetensors

from hub_cards import build_card
from swag_trainer import SwagError, load_posterior
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.saved_adapter import ADAPTER_WEIGHTS
from swag_trainer.posterior.storage import encode

KINDS = ("swag", "plain", "point", "mean-field", "kronecker", "mixture", "coefficients")
_BESIDE = ("initial/", "pristine/", "ood/")


class PosteriorFiles:
    """The posterior's own file: its bytes, its header, and its tensors and document with a digest that is right again."""

    name = "posterior"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.loaded = {name: load_posterior(folder) for name, folder in place.honest.items()}
        self.files = {name: files[POSTERIOR_FILE] for name, files in place.contents.items()}
        self.allowance = 3 * max(map(len, self.files.values()))

    def read_honest(self) -> None:
        for folder in self.place.honest.values():
            _use(load_posterior(folder), random.Random(0))

    def run(self, rng: random.Random) -> str:
        kind = rng.choice(KINDS)
        data = self.files[kind]
        other = self.files[rng.choice(KINDS)]
        folder = self.place.fresh("posterior", _adapter_of(self.place.contents[kind]))
        path, way = folder / POSTERIOR_FILE, rng.randrange(20)
        sealed = way >= 8
        if way < 4:
            path.write_bytes(mutated_bytes(data, rng, other))
        elif way < 7:
            path.write_bytes(with_mutated_header(data, rng))
        elif way == 7:
            path.write_bytes(data)
            put_special(path, rng)
        else:
            written = _resealed(data if way < 19 else other, rng)
            if written is None:
                return "refused"
            path.write_bytes(written)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                posterior = load_posterior(folder)
                _use(posterior, rng)
            except SwagError as error:
                return refused(error)
        if sealed:
            _check_as_written(posterior, path)
        elif posterior.digest != self.loaded[kind].digest and path.read_bytes() != other:
            raise WrongValuesError(f"A file without a right digest was accepted as another {kind}.")
        return "accepted"


def _adapter_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: files[name] for name in ("adapter_config.json", ADAPTER_WEIGHTS)}


def _resealed(data: bytes, rng: random.Random) -> bytes | None:
    """Return a posterior's file with other tensors or another document, and with the digest of these; None where no file can hold them."""
    header, _ = parts_of(data)
    tensors = dict(load_safetensors(data))
    document = json.loads(header["__metadata__"]["swag_trainer"])["document"]
    way = rng.randrange(5)
    if way < 3:
        document = mutated_json(document, rng)
    if way >= 2:
        tensors = mutated_tensors(tensors, rng)
    try:
        return b"".join(map(bytes, encode(tensors, document)[0]))
    except (UnicodeEncodeError, ValueError, RecursionError):
        return None


def _use(posterior: WeightPosterior, rng: random.Random) -> None:
    """Do with a posterior what every program does with one."""
    for scale in (None, 0.0, 1.0):
        drawn = posterior.draw(3, seed=0, scale=scale).vectors
        if not torch.isfinite(drawn).all():
            raise WrongValuesError(f"Draws at scale {scale} of an accepted posterior are not finite.")
    _ = (
        posterior.digest,
        posterior.relative_energy(),
        repr(posterior),
        posterior.summary(),
        posterior.title,
        posterior.total_variance,
    )
    for name in posterior.centers:
        posterior.center(name)
    if rng.random() < 0.1:
        build_card(posterior, repo_id="user/fuzzed")


def _check_as_written(posterior: WeightPosterior, path: Path) -> None:
    """Compare an accepted posterior with what safetensors and json, which know nothing of this package, read in its file."""
    data = path.read_bytes()
    header, _ = parts_of(data)
    document = json.loads(header["__metadata__"]["swag_trainer"])["document"]
    written = {name: tensor for name, tensor in load_safetensors(data).items() if not name.startswith(_BESIDE)}
    held = posterior.tensors()
    if set(written) != set(held):
        raise WrongValuesError(f"The names {sorted(set(written) ^ set(held))[:3]} differ.")
    for name, tensor in written.items():
        if tensor.dtype != held[name].dtype or not torch.equal(tensor, held[name]):
            raise WrongValuesError(f"{name!r} differs from what is written.")
    record, metadata = (document.get(part, document) for part in ("record", "metadata"))
    _check_same(record, posterior.record.as_document(), "record")
    if posterior.kind == "mixture":
        total = sum(metadata["weights"])
        metadata = {**metadata, "weights": [weight / total for weight in metadata["weights"]]}
    _check_same(metadata, posterior.metadata(), "metadata")


def _check_same(written: Any, held: Any, where: str) -> None:
    """What is written must be held; what is not written may have a default."""
    if isinstance(written, dict) and isinstance(held, dict):
        for name, value in written.items():
            if name == "scale_nll":
                continue
            if name not in held and value not in ([], {}, None):
                raise WrongValuesError(f"{where}.{name} is written, and not held.")
            _check_same(value, held.get(name, value), f"{where}.{name}")
    elif isinstance(written, list) and isinstance(held, (list, tuple)) and len(written) == len(held):
        for index, (value, other) in enumerate(zip(written, held, strict=True)):
            _check_same(value, other, f"{where}[{index}]")
    elif isinstance(written, (int, float)) and isinstance(held, (int, float)):
        both_nan = written != written and held != held
        if written != held and not both_nan and not abs(written - held) <= 1e-12 * abs(written):
            raise WrongValuesError(f"{where} is {held!r}, {written!r} is written.")
    elif written != held:
        raise WrongValuesError(f"{where} is {str(held)[:80]!r}, {str(written)[:80]!r} is written.")
