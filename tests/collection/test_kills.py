import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import lora_model, trainer_for

from swag_trainer import Every, SwagCallback
from swag_trainer.collection.checkpoints import last_complete_checkpoint

SCRIPT = Path(__file__).with_name("kill_and_resume.py")
ROOT = SCRIPT.parents[2]


def killed(kills: int, *, seed: int) -> str:
    """Run the script; it fails by itself if a killed run ends elsewhere or a file is half-written. Return its last line."""
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", str(kills), "--seed", str(seed)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


def test_two_killed_runs_end_like_one_that_was_left_alone():
    # Red for: get_last_checkpoint in place of ours; a file written in place; moments written after trainer_state.json.
    assert re.match(r"2 of 2 kills resumed, in \d+ runs; 0 things wrong", killed(2, seed=3))


@pytest.mark.slow
def test_thirty_of_thirty_killed_runs_end_like_one_that_was_left_alone():
    # Red for: the same, and for what happens once in ten kills.
    assert re.match(r"30 of 30 kills resumed, in \d+ runs; 0 things wrong", killed(30, seed=0))


@pytest.mark.slow
def test_forty_processes_killed_while_they_save_leave_the_old_posterior_or_the_new_one():
    # Red for: a file written in place, or replaced before the other one is complete.
    script = ROOT / "tests" / "posterior" / "kill_while_saving.py"
    result = subprocess.run(
        [sys.executable, str(script), "--kills", "40"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert re.match(r"40 kills: .*; 0 things wrong", result.stdout.splitlines()[-1])


@pytest.fixture
def finish(base_folder, rows, tokenizer, tmp_path):
    """A run that saves at its last step; called again, it only has to be finished."""

    def finish(max_steps, **settings):
        swag = SwagCallback(Every(steps=1, start=0.3), rank=4, **settings)
        arguments = {"max_steps": max_steps, "save_strategy": "steps", "save_steps": max_steps}
        trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[swag], **arguments)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path))
        return swag.posterior

    return finish


@pytest.mark.parametrize("max_steps", [12, 14])
def test_a_run_that_only_has_to_be_finished_ends_with_the_same_posterior(finish, max_steps):
    # Red for: collecting in the step too many that the Trainer (5.23) takes when its last checkpoint is not at the end of an epoch.
    posteriors = [finish(max_steps) for _ in range(3)]
    for again in posteriors[1:]:
        assert torch.equal(again.gaussian.mean, posteriors[0].gaussian.mean)
        assert torch.equal(again.gaussian.deviations, posteriors[0].gaussian.deviations)
        assert again.adapter.digest == posteriors[0].adapter.digest
        assert again.num_collected == posteriors[0].num_collected


@pytest.mark.xfail(
    strict=True, reason="the Trainer (5.23) takes a step too many when its last checkpoint is not at the end of an epoch"
)
def test_a_run_that_only_has_to_be_finished_keeps_the_trained_weights(finish):
    # Red for: an adapter of step 15 in a run of 14.
    assert finish(14, final_weights="trained").adapter.digest == finish(14, final_weights="trained").adapter.digest


def test_a_run_that_only_has_to_be_finished_knows_its_problem_type(finish):
    # Red for: a posterior without its problem type, whose pipeline then takes softmax where the model was trained with a sigmoid.
    assert (finish(12).record, finish(12).collection) == (finish(12).record, finish(12).collection)
