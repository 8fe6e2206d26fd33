"""Prints the lower bounds of pyproject.toml as constraints for pip: what `make oldest` installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS_OF_USERS = ("cards", "cli", "evaluate")  # the others are for working on this repository, and stay at their newest


def lower_bounds() -> dict[str, str]:
    """Return the lowest version that pyproject.toml allows of everything that a user of the package installs with it."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = [entry for name in EXTRAS_OF_USERS for entry in project["optional-dependencies"][name]]
    bounds = (re.match(r"([\w.-]+)>=([\w.]+)", entry) for entry in [*project["dependencies"], *extras])
    return dict(bound.groups() for bound in bounds if bound)


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in lower_bounds().items()))
