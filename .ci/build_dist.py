"""Build wheel and sdist of the commit that is checked out, byte for byte the same wherever and whenever it is done.

    python .ci/build_dist.py [FOLDER]        # dist by default

Builds from the files of the commit alone. Times are those of the commit (``SOURCE_DATE_EPOCH``, https://reproducible-builds.org); owners
and modes, which sdists take from the machine, are set. The bytes still depend on the version of setuptools, which constraints.txt pins.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    target.mkdir(parents=True, exist_ok=True)
    os.environ["SOURCE_DATE_EPOCH"] = epoch = _git("log", "-1", "--format=%ct").decode().strip()
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as place:
        source, built = Path(place) / "source", Path(place) / "built"
        with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", "HEAD"))) as archive:
            archive.extractall(source, filter="data")
        built.mkdir()
        for hook in ("build_sdist", "build_wheel"):  # in processes of their own: setuptools keeps what it found
            code = f"from setuptools import build_meta; build_meta.{hook}({str(built)!r})"
            subprocess.run([sys.executable, "-c", code], cwd=source, check=True, stdout=subprocess.DEVNULL)
        for path in sorted(built.iterdir()):
            content = _normalised(path.read_bytes(), int(epoch)) if path.name.endswith(".tar.gz") else path.read_bytes()
            (target / path.name).write_bytes(content)
            print(f"{hashlib.sha256(content).hexdigest()}  {target / path.name}")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout


def _normalised(data: bytes, epoch: int) -> bytes:
    """Return a .tar.gz with its members in order, and without times, owners and modes of this machine."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode, member.pax_headers = 0o755 if member.isdir() or member.mode & 0o100 else 0o644, {}
            new.addfile(member, old.extractfile(member))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=epoch) as file:
        file.write(plain.getvalue())
    return packed.getvalue()


if __name__ == "__main__":
    main()
