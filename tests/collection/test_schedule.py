import doctest

import pytest

from swag_trainer.collection import schedule
from swag_trainer.collection.schedule import Evenly, Every, collection_steps


def steps_of(value, max_steps, steps_per_epoch=None):
    return collection_steps(value, max_steps=max_steps, steps_per_epoch=steps_per_epoch)


def test_the_examples_in_the_docstrings_hold():
    # Red for: an example that has drifted.
    assert doctest.testmod(schedule).failed == 0


def test_every_counts_from_the_beginning_of_the_run_and_begins_at_its_start():
    # Red for: steps counted from the start of collection, or a start that is left out.
    assert steps_of(Every(steps=10, start=0.45), 100) == [50, 60, 70, 80, 90, 100]
    assert steps_of(Every(steps=50, start=0.0), 100) == [50, 100]


def test_every_epoch_is_the_last_step_of_an_epoch_also_when_epochs_have_odd_lengths():
    # Red for: the first step of an epoch, or a distance rounded to whole steps, which drifts.
    assert steps_of(Every(epochs=1, start=0.5), 40, 10) == [20, 30, 40]
    assert steps_of(Every(epochs=0.5, start=0.0), 15, 5) == [3, 5, 8, 10, 13, 15]


@pytest.mark.parametrize("max_steps", [7, 30, 59, 60, 100, 101, 997])
@pytest.mark.parametrize("start", [0.0, 0.5, 0.9])
def test_evenly_spreads_its_snapshots_over_any_run(max_steps, start):
    # Red for: a distance rounded to whole steps, which gives too few or too many snapshots, or misses the last step.
    due = steps_of(Evenly(snapshots=30, start=start), max_steps)
    first = max(1, round(start * max_steps))
    assert due[0] == first and due[-1] == max_steps
    assert len(due) == min(30, max_steps - first + 1)
    gaps = {after - before for before, after in zip(due, due[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Every(),
        lambda: Every(steps=5, epochs=1),
        lambda: Every(steps=0),
        lambda: Every(steps=2.5),
        lambda: Every(epochs=-1),
        lambda: Every(steps=5, start=1.0),
        lambda: Every(steps=5, start=50),
        lambda: Evenly(snapshots=1),
        lambda: Evenly(start=-0.1),
    ],
)
def test_a_schedule_that_means_nothing_cannot_be_made(make):
    # Red for: a schedule that checks itself when it is first asked, in the middle of a run.
    with pytest.raises(ValueError, match="got"):
        make()


def test_epochs_need_the_length_of_an_epoch():
    # Red for: an iterable data set collected from at no step at all.
    with pytest.raises(ValueError, match=r"Every\(steps=\.\.\.\)"):
        Every(epochs=1, start=0.0).is_due(step=5, max_steps=10)
