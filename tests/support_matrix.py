"""The tables of docs/support.md, from the measurements in docs/data.

python tests/support_matrix.py                  # writes the tables into docs/support.md
python tests/support_matrix.py FOLDER           # first takes over what `python tests/adapters/every_tuner_worker.py save FOLDER` measured
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
PAGE, DATA = DOCS / "support.md", DOCS / "data"


def adapter_outcome(measured: dict[str, Any]) -> dict[str, Any]:
    """Return what docs/data/adapters.json keeps of an outcome of every_tuner_worker.py."""
    if "error" in measured:
        reason = re.search(r"An adapter of the kind \w+ (.*?): ", measured["error"])
        return {"reason": reason.group(1) if reason else measured["error"]}
    return {"packed": measured["packed"]}


def adapters_table() -> str:
    """Return the table of all kinds of adapters that PEFT has."""
    lines = ["| PEFT type | posterior | draws |", "|---|---|---|"]
    for name, outcome in sorted(json.loads((DATA / "adapters.json").read_text()).items()):
        refused = outcome.get("reason")
        draws = "" if refused else "in one forward" if outcome["packed"] else "one after another"
        lines.append(f"| {name} | {'no: ' + refused if refused else 'yes'} | {draws} |")
    return "\n".join(lines)


def architectures_table() -> str:
    """Return the model types of transformers, by what became of them."""
    measured = json.loads((DATA / "architectures.json").read_text())
    lines = ["| kind | outcome | model types |", "|---|---|---|"]
    for kind, rows in measured["kinds"].items():
        groups: dict[str, list[str]] = {}
        for name, row in rows.items():
            groups.setdefault(_OUTCOMES[row["outcome"], row["fast_path"]], []).append(name)
        for outcome in dict.fromkeys(_OUTCOMES.values()):
            if names := sorted(groups.get(outcome, [])):
                lines.append(f"| {kind} | {outcome} ({len(names)}) | {', '.join(names)} |")
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    return "\n".join([*lines, "", f"Measured with {versions}."])


def with_tables(text: str) -> str:
    """Return the page with its tables written anew: each stands between two marks with its name."""

    def written(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n\n{_TABLES[found[1]]()}\n\n<!-- end of {found[1]} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end of \1 -->", written, text, flags=re.DOTALL)


_TABLES = {"adapters": adapters_table, "architectures": architectures_table}
_OUTCOMES = {
    ("predicts", True): "predicts, in one forward",
    ("predicts", False): "predicts, one draw after another",
    ("collects", None): "collects; not predicted with here",
    ("PEFT refuses", None): "PEFT refuses",
    ("not built", None): "not tried",
    ("refused", None): "refused",
}


def main(arguments: list[str]) -> None:
    """Take over measurements, and write the page."""
    for folder in arguments:
        measured = map(json.loads, Path(folder, "save.jsonl").read_text().splitlines())
        outcomes = {each["name"]: adapter_outcome(each) for each in measured}
        (DATA / "adapters.json").write_text(json.dumps(outcomes, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
