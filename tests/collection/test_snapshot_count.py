import pytest

from swag_trainer.collection.schedule import Every
from swag_trainer.collection.snapshot_count import collected_too_few, planned_too_few

RUN = {"first_step": 30, "max_steps": 100}


def test_fewer_than_ten_snapshots_are_a_warning_that_says_what_to_change():
    # Red for: another limit; a warning without the numbers of the run.
    assert planned_too_few(10, Every(steps=7)) is None
    message = planned_too_few(9, Every(steps=7))
    assert (
        message is not None and "9 snapshots (Every(steps=7" in message and "8 directions" in message and "up to 50%" in message
    )
    assert "Evenly(snapshots=30" in message


@pytest.mark.parametrize(("collected", "planned"), [(10, 30), (4, 4), (12, None)])
def test_a_run_that_took_what_it_planned_or_enough_is_not_warned_about_again(collected, planned):
    # Red for: the warning at the start repeated at the end.
    assert collected_too_few(collected, planned=planned, last_step=100, **RUN) is None


def test_early_stopping_is_named_as_the_cause_and_the_cure_differs():
    # Red for: advice to train longer for a run that was stopped.
    stopped = collected_too_few(2, planned=30, last_step=40, **RUN)
    assert stopped is not None and "stopped at step 40 of 100 with 2 of 30 snapshots" in stopped
    assert "early_stopping_patience" in stopped and "1 direction at most" in stopped
    none = collected_too_few(0, planned=30, last_step=20, **RUN)
    assert none is not None and none.startswith("No SWAG posterior: Training stopped at step 20") and "due at step 30" in none
    adaptive = collected_too_few(3, planned=None, last_step=100, **RUN)
    assert adaptive is not None and "evaluate more often" in adaptive
