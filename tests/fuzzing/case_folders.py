"""Where mutated cases lie, and what all targets of the fuzzer have in common."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from harness import WrongValuesError
from honest import posteriors, save, save_base
from mutations import mutated_json, parts_of, with_header


class Place:
    """Honest folders of every kind, made once, and a folder in which one is mutated."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = save_base(root / "base")
        self.posteriors = posteriors(self.base)
        self.honest = {name: save(each, root / "honest" / name, name, self.base) for name, each in self.posteriors.items()}
        self.contents = {
            name: {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
            for name, folder in self.honest.items()
        }

    def fresh(self, name: str, files: dict[str, bytes]) -> Path:
        """Return a folder with these files and nothing else."""
        folder = self.root / "case" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return folder


def refused(error: Exception) -> str:
    """Check a message as a terminal and a log get it."""
    text = str(error)
    if len(text) > 4000 or "\x1b" in text or "\0" in text:
        raise WrongValuesError(f"A message of {len(text)} characters, or with escape codes: {text[:300]!r}")
    return "refused"


def with_mutated_header(data: bytes, rng: random.Random) -> bytes:
    header, content = parts_of(data)
    return with_header(mutated_json(header, rng), content, rng)
