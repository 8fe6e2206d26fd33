"""The soak test for some minutes; `tests/soak.py --seconds 3600` runs it for an hour."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_memory_files_and_threads_stay_as_they_are_over_many_rounds():
    # Red for: a model, a posterior or a connection that is kept from round to round, or a number that changes.
    script = [sys.executable, str(ROOT / "tests" / "soak.py"), "--seconds", "120"]
    result = subprocess.run(script, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
