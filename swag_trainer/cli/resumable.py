"""An interruption after which the same command goes on where it stopped."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class ResumableInterrupt(KeyboardInterrupt):
    """Ctrl-C, after which ``--resume`` continues; its text says what was saved."""


def resuming_command(command: str, arguments: Sequence[str]) -> str:
    """Return the command line that continues an interrupted one.

    >>> resuming_command("predict", ["run", "--output", "my file.csv", "--", "-text"])
    "swag-trainer predict run --output 'my file.csv' --resume -- -text"
    """
    options, rest = list(arguments), []
    if "--" in options:
        options, rest = options[: options.index("--")], options[options.index("--") :]
    if "--resume" not in options:
        options.append("--resume")
    return f"swag-trainer {shlex.join([command, *options, *rest])}"
