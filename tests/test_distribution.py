"""Wheel and sdist: the same bytes wherever they are built."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_two_builds_of_a_commit_have_the_same_bytes(tmp_path):
    # Red for: times of the build, owners and modes of the machine, or files that happen to lie in the folder, in wheel or sdist.
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    built = []
    for name, umask in (("one", 0o022), ("another, with another name", 0o077)):
        clone = tmp_path / name / "swag"
        subprocess.run(
            ["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, preexec_fn=lambda mask=umask: os.umask(mask)
        )
        shutil.copy(ROOT / ".ci" / "build_dist.py", clone / ".ci")  # of the tree that is tested
        (clone / "swag_trainer" / "stray.py").write_text("lies around, and is not committed")
        os.utime(clone / "README.md", (10**9 + umask, 10**9))
        subprocess.run([sys.executable, ".ci/build_dist.py", "out"], cwd=clone, check=True, capture_output=True)
        built.append({path.name: path.read_bytes() for path in (clone / "out").iterdir()})
        last = clone / "out"
    assert len(built[0]) == 2 and built[0] == built[1]
    wheel, sdist = next(last.glob("*.whl")), next(last.glob("*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as other:
        names = archive.namelist()
        assert {"swag_trainer/py.typed", "hub_cards/py.typed"} <= set(names)
        assert not [name for name in (*names, *other.getnames()) if "stray" in name or name.startswith("tests")]
