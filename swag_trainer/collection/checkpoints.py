"""Search for the last complete checkpoint, from which a run that was interrupted can be resumed.

The Trainer writes into ``checkpoint-N`` file by file, ``trainer_state.json`` last, and deletes old checkpoints file by file too. Its
own search (``transformers.trainer_utils.get_last_checkpoint``) takes the highest number, an empty or half-written folder included.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from pathlib import Path

from swag_trainer.collection.file_integrity import IncompleteError, check_written, read_json
from swag_trainer.collection.records import RECORDS_KEY, moments_file, stored_records
from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError, SwagError, shortened
from swag_trainer.posterior.regular_file import opened
from swag_trainer.posterior.storage import read_file

logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")

# How the Trainer, PEFT, accelerate and DeepSpeed call their files.
_STATE_FILE = "trainer_state.json"
_SENTINEL = "checkpoint-is-incomplete.txt"  # the first file of a checkpoint that the Trainer writes on SIGTERM
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
_SHARD = re.compile(r"(?!.*\.\.)[A-Za-z0-9_.-]{1,255}")
_RNG_FILE = re.compile(r"rng_state(?:_([0-9]{1,6}))?\.pth")
_FSDP_MODEL = re.compile(r"pytorch_model_fsdp(_[0-9]+)?(_rank[0-9]+)?(\.bin)?")
# What FSDP, XLA and SageMaker write in place of one optimizer.pt.
_OTHER_OPTIMIZER = re.compile(
    r"optimizer(_[0-9]+)?(_rank[0-9]+)?\.bin|optimizer_[0-9]+|rank[0-9]+-of-[0-9]+-optimizer\.pt|optimizer\.pt_.+"
)


def adapters_digest(checkpoint: str | Path) -> str:
    """Return a SHA-256 over the adapter files in a checkpoint folder, those in sub-folders included: their names and their bytes.

    A checkpoint that is written a second time gets its new adapter first and its new trainer_state.json last. Killed in between, all
    its files are complete, but of two saves. The record of every SwagCallback holds this digest, by which that is noticed.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in _adapter_files(Path(checkpoint)):
        with opened(path) as (file, size):
            digest.update(f"{path.relative_to(checkpoint).as_posix()}\0{size}\0".encode())
            while chunk := file.read(1024**2):
                digest.update(chunk)
    return digest.hexdigest()


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Find the newest checkpoint that training can be continued from exactly.

    Examples:
        >>> trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))       # doctest: +SKIP

    That line starts a run, and goes on with one that was killed, wherever it was killed. A ``checkpoint-N`` counts if its
    ``trainer_state.json`` is whole and of step N, every weights file and every state of optimizer, scheduler and random numbers is
    there and was written to its end, and the adapters and the moments of every SwagCallback have the digests that trainer_state.json records. One made
    with ``save_only_model=True`` does not count: the Trainer would go on from it with a fresh optimizer and say nothing.

    Only headers and end marks of the Trainer's files are read, so bytes that changed inside one go unnoticed; so does the random state
    of another rank that was never written, because a checkpoint does not say how many ranks there were. What DeepSpeed and FSDP write
    into folders of their own is looked for by its end mark (``latest``, ``.metadata``) and not read.

    Args:
        folder: The Trainer's ``output_dir``.

    Returns:
        The path for ``resume_from_checkpoint``; None, with which the Trainer starts anew, where there is no such folder or nothing
        to go on from in it. The log says at INFO which checkpoints were passed over and why, at WARNING if that were all of them.

    Raises:
        SwagError: ``folder`` is not a folder or cannot be read. Starting anew would then discard the checkpoints that may be there.
    """
    folder = Path(folder)
    try:
        steps = sorted(_steps(folder), reverse=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SwagError(
            f"The checkpoints in {str(folder)!r} cannot be listed: {error.strerror}. Give the Trainer's output_dir, or make it readable."
        ) from error
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        try:
            _check(checkpoint, step)
        except (IncompleteError, PosteriorFormatError, PosteriorNotFoundError) as reason:
            logger.info("Passed over %r: %s", str(checkpoint), reason)
        except FileNotFoundError as error:
            logger.info("Passed over %r: %r is missing.", str(checkpoint), str(error.filename))
        except OSError as error:  # no kill leaves this behind
            logger.warning("Passed over %r: %r cannot be read: %s.", str(checkpoint), str(error.filename), error.strerror)
        else:
            return str(checkpoint)
    if steps:
        logger.warning(
            "None of the %d checkpoints in %r is complete, so there is nothing to go on from; the log says why at INFO.",
            len(steps),
            str(folder),
        )
    return None


def _steps(folder: Path) -> list[int]:
    matches = [_CHECKPOINT.fullmatch(name) for name in os.listdir(folder) if os.path.isdir(folder / name)]
    return [int(match[1]) for match in matches if match]


def _check(checkpoint: Path, step: int) -> None:
    """Do nothing if the checkpoint is complete.

    Raises:
        IncompleteError, PosteriorFormatError, PosteriorNotFoundError, OSError: It is not, and why.
    """
    names = sorted(os.listdir(checkpoint))
    state = read_json(checkpoint / _STATE_FILE)
    # Over an older checkpoint of the same step. The Trainer takes its mark away only after it has deleted other checkpoints, and a later
    # save of this step leaves it: once there is a newer trainer_state.json, it says nothing, and this may be the only checkpoint.
    if _SENTINEL in names and _written_at(checkpoint / _SENTINEL) > _written_at(checkpoint / _STATE_FILE):
        raise IncompleteError(f"{_SENTINEL} says that the Trainer was cut off while it wrote this checkpoint.")
    if type(state.get("global_step")) is not int or state["global_step"] != step:
        raise IncompleteError(f"{_STATE_FILE} is of step {shortened(repr(state.get('global_step')))}.")
    # DeepSpeed keeps weights, optimizer and scheduler in global_step<n> and writes "latest" when all ranks are done.
    deepspeed = "latest" in names and any(re.fullmatch(r"global_step[0-9]+", name) for name in names)
    _check_weights(checkpoint, names, deepspeed=deepspeed)
    _check_training_states(checkpoint, names, deepspeed=deepspeed)
    _check_records(checkpoint, state.get("stateful_callbacks"))


def _written_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def _check_weights(checkpoint: Path, names: list[str], *, deepspeed: bool) -> None:
    adapters = _adapter_files(checkpoint)
    models = [checkpoint / name for name in _MODEL_FILES if name in names]
    for index in (f"{name}.index.json" for name in _MODEL_FILES):
        if index in names:
            models += [checkpoint / name for name in _shards(checkpoint / index)]
    for path in adapters + models:
        check_written(path)
    for path in adapters:
        read_json(path.with_name(_ADAPTER_CONFIG))
    sharded = [name for name in names if _FSDP_MODEL.fullmatch(name)]
    for name in sharded:
        _check_folder(checkpoint / name)
    if not (adapters or models or sharded or deepspeed):
        raise IncompleteError("it has no weights.")


def _check_training_states(checkpoint: Path, names: list[str], *, deepspeed: bool) -> None:
    others = [name for name in names if _OTHER_OPTIMIZER.fullmatch(name)]
    for name in others:
        _check_folder(checkpoint / name)
    if not (others or deepspeed) or "optimizer.pt" in names:
        check_written(checkpoint / "optimizer.pt")
    if not deepspeed or "scheduler.pt" in names:  # not there if the scheduler is DeepSpeed's own
        check_written(checkpoint / "scheduler.pt")
    if "scaler.pt" in names:
        check_written(checkpoint / "scaler.pt")
    for name in [name for name in names if _RNG_FILE.fullmatch(name)] or ["rng_state.pth"]:
        check_written(checkpoint / name)
    ranks = sorted(int(match[1]) for name in names if (match := _RNG_FILE.fullmatch(name)) and match[1])
    if ranks and len(ranks) <= ranks[-1] - ranks[0]:
        raise IncompleteError(f"it has the random states of ranks {shortened(str(ranks))}; those between are missing.")


def _check_records(checkpoint: Path, stateful_callbacks: object) -> None:
    callbacks = {} if stateful_callbacks is None else stateful_callbacks
    records = stored_records(callbacks)
    entries = callbacks.get(RECORDS_KEY, {}) if isinstance(callbacks, dict) else None
    if not isinstance(entries, dict) or len(entries) != len(records):
        raise IncompleteError(f"{_STATE_FILE} has records under {RECORDS_KEY!r} that no SwagCallback wrote.")
    for name, record in records.items():
        if record["digest"] is not None:
            _, _, found = read_file(checkpoint / moments_file(name))
            if found != record["digest"]:
                raise IncompleteError(
                    f"{moments_file(name)} has the digest {found[:12]}, {_STATE_FILE} says {record['digest'][:12]}."
                )
        if record.get("adapters_digest") is not None and record["adapters_digest"] != adapters_digest(checkpoint):
            raise IncompleteError(
                f"its adapter is not the one that {_STATE_FILE} was saved with; two saves are mixed in this folder."
            )


def _adapter_files(checkpoint: Path) -> list[Path]:
    """The weights of every adapter; PEFT puts one that is not called "default" into a folder of its own."""
    paths = []
    for folder in [checkpoint, *(checkpoint / name for name in sorted(os.listdir(checkpoint)))]:
        found = [folder / name for name in _ADAPTER_FILES if (folder / name).exists()]
        if not found and (folder / _ADAPTER_CONFIG).exists():
            raise FileNotFoundError(errno.ENOENT, "No weights beside a configuration", str(folder / _ADAPTER_FILES[0]))
        paths += found
    return paths


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in names):
        raise IncompleteError(f"{index.name} does not name the files of the model.")
    return sorted(set(names))


def _check_folder(path: Path) -> None:
    """Refuse a folder of torch.distributed.checkpoint without the file that it writes when all ranks are done."""
    if path.is_dir() and not (path / ".metadata").exists():
        raise IncompleteError(f"{path.name} has no .metadata, so not every rank has written its part.")
