"""Prints the lower bounds of the runtime dependencies in pyproject.toml as constraints for pip: what `make oldest` installs."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lower_bounds(torch: str) -> list[str]:
    """Return ``name==version`` for every runtime dependency; torch stays at the CPU build that was asked for."""
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    bounds = dict(re.match(r"([\w-]+)>=([\w.]+)", dependency).groups() for dependency in dependencies)
    return [f"{name}=={version}" for name, version in (bounds | {"torch": torch}).items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", required=True)
    print("\n".join(lower_bounds(parser.parse_args().torch)))
