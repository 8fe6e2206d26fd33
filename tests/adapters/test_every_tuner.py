"""Every kind of adapter that PEFT has: trained, saved and loaded in another process, or refused before the first step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from every_tuner import TUNERS
from peft import PeftType
from support_matrix import DATA, adapter_outcome

REFUSED = {
    "ADAPTION_PROMPT": "trains tokens that are put before the input of attention layers",
    "CARTRIDGE": "is prompt learning",
    "CPT": "is prompt learning",
    "MULTITASK_PROMPT_TUNING": "is prompt learning",
    "POLY": "needs the number of a task beside every input",
    "PREFIX_TUNING": "is prompt learning",
    "PROMPT_TUNING": "is prompt learning",
    "P_TUNING": "is prompt learning",
    "SHADOW": "trains a second model that runs beside the base",
    "XLORA": "mixes adapters that lie in other folders",
}


def test_every_kind_is_in_the_table():
    # Red for: a new release of PEFT with a kind that nothing was tried with.
    assert set(TUNERS) == {kind.value for kind in PeftType} == set(json.loads((DATA / "adapters.json").read_text()))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What two processes that know nothing of each other wrote, by the step and the kind's name."""
    folder = tmp_path_factory.mktemp("tuners")
    worker = Path(__file__).with_name("every_tuner_worker.py")
    for step in ("save", "load"):
        subprocess.run([sys.executable, str(worker), step, str(folder)], check=True)
    read = {step: (folder / f"{step}.jsonl").read_text().splitlines() for step in ("save", "load")}
    return {step: {row["name"]: row for row in map(json.loads, lines)} for step, lines in read.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNERS)
def test_a_kind_predicts_in_another_process_as_here_or_is_refused_before_the_first_step(outcomes, name):
    # Red for: buffers that are saved and never loaded (BOFT, OFT, OSF, PSOFT), ranks that are missing in the file (AdaLoRA), a base that is
    # written to while the adapter is read back.
    saved = outcomes["save"][name]
    assert adapter_outcome(saved) == json.loads((DATA / "adapters.json").read_text())[name]
    if name in REFUSED:
        assert REFUSED[name] in saved["error"] and saved["step"] == 0
        return
    assert "error" not in saved, saved
    assert saved["changed"] == []
    assert outcomes["load"][name]["predictions"] == saved["predictions"]
    assert max(uncertainty for text in saved["predictions"] for _, uncertainty in text) > 1e-9  # three embeddings move least
