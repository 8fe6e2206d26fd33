"""What `import swag_trainer` may not do."""

import json
import subprocess
import sys

import pytest

WATCH = """
import json, os, sys
import transformers, peft
seen = []
def hook(event, arguments):
    if event.startswith("socket.connect") or event == "socket.bind":
        seen.append([event, repr(arguments[1:])])
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+"):
        seen.append([event, repr(arguments[:2])])
    if event in ("os.mkdir", "os.rename", "os.remove"):
        seen.append([event, repr(arguments)])
sys.addaudithook(hook)
sys.dont_write_bytecode = True
import swag_trainer
from swag_trainer import MonteCarloPredictor, SwagCallback, SwagPosterior, last_complete_checkpoint
print(json.dumps([seen, "transformers.pipelines" in sys.modules, "matplotlib" in sys.modules]))
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
print(json.dumps("swag-text-classification" in PIPELINE_REGISTRY.supported_tasks))
"""


def test_importing_opens_no_socket_writes_nothing_and_leaves_the_pipelines_for_later():
    # Red for: registration that imports transformers.pipelines (a second), a request or a cache folder at import, also of the names.
    output = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(output[-2]) == [[], False, False]
    # And yet the task is there as soon as somebody asks for a pipeline.
    assert json.loads(output[-1]) is True


@pytest.mark.slow
def test_the_task_is_known_also_when_the_pipelines_were_imported_first():
    # Red for: a hook that waits for an import which has already happened.
    code = (
        "import transformers.pipelines as p; import swag_trainer; "
        "assert 'swag-text-classification' in p.PIPELINE_REGISTRY.supported_tasks; print('known')"
    )
    assert "known" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_each_pipeline_can_be_imported_first():
    # Red for: a module whose import makes transformers import it, and the others, once more while it is half done.
    code = "from swag_trainer import SwagMultipleChoicePipeline as p; print(p.swag_task)"
    assert (
        "swag-multiple-choice"
        in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def test_importing_alone_imports_none_of_the_big_libraries():
    # Red for: a public name that is imported before somebody asks for it; `swag-trainer --help` then takes seconds.
    code = "import swag_trainer, sys; print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_can_be_imported():
    # Red for: a name of __all__ that is missing or at home elsewhere, a name that dir() (and so completion) does not show.
    import swag_trainer

    for name in swag_trainer.__all__:
        assert getattr(swag_trainer, name) is not None
    assert set(swag_trainer.__all__) <= set(dir(swag_trainer))
    with pytest.raises(AttributeError, match="has no attribute 'SwagCallbak'"):
        swag_trainer.SwagCallbak  # noqa: B018
