"""pyproject.toml, the lock in constraints.txt and the Makefile agree about versions."""

import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from lower_bounds import EXTRAS_OF_USERS, lower_bounds
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
DOCS_ALONE = {"pymdown-extensions"}  # needs Python 3.11.5; `make docs` alone installs it
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
LOCK = {
    canonicalize_name(name): Version(version)
    for name, _, version in (line.partition("==") for line in LINES if not line.startswith("#"))
}


def required(*extras):
    """The requirements of the package and of the named extras, the package itself left out."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


def test_the_lock_holds_versions_and_nothing_of_the_machine_it_was_made_on():
    # Red for: a URL, a path, a host, an editable install, or the "+cpu" of a wheel that only this machine has.
    assert LINES[0].startswith("#")
    wrong = [line for line in LINES[1:] if not re.fullmatch(r"[\w.-]+==\d+(\.\d+)*(\.?(post|rc|a|b)\d+)?", line)]
    assert not wrong and len(LOCK) == len(LINES) - 1


def test_every_dependency_stands_in_the_lock_within_its_bounds():
    # Red for: a bound that moved and a lock that did not, so that `make test` cannot be installed.
    for requirement in [*required(*PROJECT["optional-dependencies"]), *map(Requirement, PYPROJECT["build-system"]["requires"])]:
        assert LOCK.get(canonicalize_name(requirement.name), Version("0")) in requirement.specifier, str(requirement)
    assert "pip" in LOCK  # installs them, and resolves the extras


def test_the_lock_is_complete():
    # Red for: `pip freeze` without --all, or a dependency of a dependency that floats and breaks an installation of tomorrow.
    if importlib.metadata.version("transformers") != str(LOCK["transformers"]):
        pytest.skip("this environment was not made from the lock")
    extras = set(PROJECT["optional-dependencies"]) - {"quantised"}  # lies beside the environment, without what it depends on
    if importlib.util.find_spec("mkdocs") is None:
        extras.remove("docs")  # `make test` does not install it
    open_, seen = [(requirement.name, requirement.extras) for requirement in required(*extras)], set()
    while open_:
        name, extras = open_.pop()
        if (key := (canonicalize_name(name), frozenset(extras))) in seen:
            continue
        seen.add(key)
        assert key[0] in LOCK, name
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            environments = [{**default_environment(), "extra": extra} for extra in ("", *extras)]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                open_.append((requirement.name, requirement.extras))


def test_every_dependency_has_a_reason_in_contributing():
    # Red for: a dependency without a row, a row without a dependency, or an extra that moved.
    rows = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] not in ("package", "---"):
            rows[canonicalize_name(cells[0])] = {extra.strip() for extra in cells[1].split(",")} - {""}
            assert len(cells) == 4 and all(cells[2:]), line
    expected = {canonicalize_name(requirement.name): set() for requirement in required()}
    for extra, lines in PROJECT["optional-dependencies"].items():
        for requirement in map(Requirement, lines):
            if requirement.name != PROJECT["name"]:
                expected.setdefault(canonicalize_name(requirement.name), set()).add(extra)
    assert rows == expected


@pytest.mark.parametrize("name", ["transformers", "peft"])
def test_what_breaks_within_days_is_capped_below_the_next_minor_version(name):
    # Red for: transformers 5.24, which asks for a PEFT that does not exist, on a user's machine.
    specifier = next(requirement.specifier for requirement in required() if requirement.name == name)
    major, minor = LOCK[name].release[:2]
    assert f"<{major}.{minor + 1}" in str(specifier)


def test_whatever_users_install_has_a_lower_bound_that_make_oldest_takes():
    # Red for: a dependency without a lower bound, or one that the pattern in lower_bounds.py does not read.
    bounds = lower_bounds()
    assert set(bounds) == {requirement.name for requirement in required(*EXTRAS_OF_USERS)}
    for requirement in required(*EXTRAS_OF_USERS):
        assert f">={bounds[requirement.name]}" in str(requirement.specifier)


def test_what_lies_beside_the_environment_of_the_tests_is_the_quantised_extra():
    # Red for: a library of the extra that the Makefile does not install, so that its tests are skipped everywhere.
    names = [Requirement(line).name for line in PROJECT["optional-dependencies"]["quantised"]]
    assert f"--target $(@D)/quantised {' '.join(names)}\n" in (ROOT / "Makefile").read_text()


def test_one_oldest_python_is_named_everywhere():
    # Red for: a Makefile that lets an older Python begin, and pip fail in the middle.
    major, minor = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"]).groups()
    makefile = (ROOT / "Makefile").read_text()
    assert f"OLDEST_PYTHON := {major}.{minor}\n" in makefile and f"sys.version_info < ({major}, {minor})" in makefile
    assert f"Python {major}.{minor} and later" in LINES[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{major}{minor}"
    for name, version in LOCK.items():
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in DOCS_ALONE and Version(metadata["Version"]).public == version.public:
            assert f"{major}.{minor}.0" in SpecifierSet(metadata["Requires-Python"] or ""), name
