"""Faults of the Hub at every request; `tests/hub_faults.py` has all of them, and prints the table."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_faults import Trials

STALE = "data set, another commit in the cache"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trials(hub, tmp_path_factory):
    from huggingface_hub import constants

    before = constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT
    yield Trials(hub, tmp_path_factory.mktemp("trials"), ["push", "card", "load_posterior", STALE])
    constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT = before


@pytest.mark.parametrize("name", ["push", "card", "load_posterior"])
@pytest.mark.parametrize("fault", ["503 once", "lost once", "moved once"])
def test_a_fault_at_any_request_is_retried_or_refused_and_never_makes_two_commits(trials, name, fault):
    # Red for: a request that is made once, "Nothing was committed" of a commit that was made, files of two commits, a token in an error.
    asked = trials.requests_of(name)
    outcomes = [trials.run(name, fault, number, len(asked)) for number in range(len(asked))]
    assert set(outcomes) <= {"passed", "retried", "refused"}, outcomes
    assert len(outcomes) > 3 and set(outcomes) != {"refused"}


def test_a_data_set_that_cannot_be_loaded_is_not_replaced_by_another_commit_of_the_cache(trials):
    # Red for: the commit of the cache, which datasets falls back on, under the id of the one that was asked for; no second attempt.
    asked = trials.requests_of(STALE)
    listing = next(number for number, (_, path) in enumerate(asked) if "/tree/" in path)
    assert trials.run(STALE, "503 always", listing, len(asked)) == "refused"
    assert trials.run(STALE, "404 once", listing, len(asked)) == "retried"


@pytest.mark.slow
def test_no_fault_at_any_request_of_any_operation_goes_wrong():
    # Red for: the same, for every fault and every operation.
    script = [sys.executable, str(ROOT / "tests" / "hub_faults.py")]
    result = subprocess.run(script, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
