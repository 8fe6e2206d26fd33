import logging

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR
from transformers import get_scheduler

from swag_trainer import SwagError
from swag_trainer.collection.learning_rate import apply_collection_rate

STEPS = 100


def linear(base=1e-3, steps=STEPS):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=base)
    return get_scheduler("linear", optimizer, num_warmup_steps=10, num_training_steps=steps)


def course(scheduler, steps=STEPS):
    """The rate that each update uses: update n sees the scheduler after n - 1 steps."""
    rates = []
    for _ in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr()[0] == rates[-1]  # what the Trainer logs
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_hold_keeps_the_rate_of_the_first_collection_until_the_end():
    # Red for: a rate held one step early or late, or a schedule that goes on falling.
    plain, scheduler = course(linear()), linear()
    apply_collection_rate(scheduler, "hold", first=50, last=STEPS)
    held = course(scheduler)
    assert held[:51] == plain[:51]
    assert held[50:] == [plain[50]] * 50


def test_a_number_is_approached_linearly_and_reached_at_the_first_collection():
    # Red for: a jump, a number taken as a factor of the base rate, or an approach that ends after the first snapshot.
    plain, scheduler = course(linear()), linear()
    apply_collection_rate(scheduler, 2e-3, first=60, last=STEPS)
    rates = course(scheduler)
    assert rates[:58] == plain[:58]
    assert rates[60:] == pytest.approx([2e-3] * 40)
    differences = [rates[step + 1] - rates[step] for step in range(57, 60)]
    assert differences == pytest.approx([differences[0]] * 3)
    assert differences[0] > 0


def test_every_parameter_group_keeps_its_own_held_rate_and_its_ratio_to_the_first():
    # Red for: one rate for all, which flattens the ratio of LoRA+ from 16 to 1.
    def two_groups():
        weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = torch.optim.AdamW([{"params": weights[:1], "lr": 1e-3}, {"params": weights[1:], "lr": 4e-3}])
        return get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=STEPS)

    for rate, expected in (("hold", [5e-4, 2e-3]), (3e-4, [3e-4, 12e-4])):
        scheduler = two_groups()
        apply_collection_rate(scheduler, rate, first=50, last=STEPS)
        course(scheduler)
        assert scheduler.get_last_lr() == pytest.approx(expected)


def test_a_resumed_scheduler_goes_on_as_if_nothing_had_happened(tmp_path):
    # Red for: callable objects as factors, whose attributes land in scheduler.pt and fail to load with weights_only=True.
    whole = linear()
    apply_collection_rate(whole, 2e-3, first=60, last=STEPS)
    expected = course(whole)
    first = linear()
    apply_collection_rate(first, 2e-3, first=60, last=STEPS)
    begun = course(first, 70)
    torch.save({"scheduler": first.state_dict(), "optimizer": first.optimizer.state_dict()}, tmp_path / "s.pt")
    second, stored = linear(), torch.load(tmp_path / "s.pt", weights_only=True)
    second.optimizer.load_state_dict(stored["optimizer"])
    second.load_state_dict(stored["scheduler"])
    apply_collection_rate(second, 2e-3, first=60, last=STEPS)
    assert begun + course(second, 30) == expected


def test_a_falling_rate_is_warned_about_once_with_its_figures(caplog):
    # Red for: collecting in silence while the rate goes to zero, or a warning where it is held.
    with caplog.at_level(logging.WARNING):
        apply_collection_rate(linear(), None, first=55, last=STEPS)
    assert len(caplog.records) == 1
    assert "0.0005 " in caplog.text and "1.11e-05" in caplog.text
    caplog.clear()
    for schedule, rate in ((linear(), "hold"), (linear(), 1e-4), (linear(steps=10_000), None)):
        apply_collection_rate(schedule, rate, first=55, last=STEPS)
    assert not caplog.records


def test_a_group_that_stands_still_is_no_obstacle():
    # Red for: "the schedule has no rate left" because one of the groups has the rate 0, or a number divided by it.
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    optimizer = torch.optim.AdamW([{"params": [w], "lr": lr} for w, lr in zip(weights, (0.0, 1e-3, 1e-2), strict=True)])
    for rate, expected in (("hold", [0, 5e-4, 5e-3]), (2e-4, [0, 2e-4, 2e-3])):
        scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=STEPS)
        apply_collection_rate(scheduler, rate, first=50, last=STEPS)
        course(scheduler, steps=80)
        assert scheduler.get_last_lr() == pytest.approx(expected)


def test_a_rate_of_zero_cannot_be_held():
    # Red for: thirty snapshots of weights that stand still.
    with pytest.raises(SwagError, match=r"no rate left at step 100.*learning_rate=2e-4"):
        apply_collection_rate(linear(), "hold", first=STEPS, last=STEPS)


def test_a_scheduler_whose_course_is_unknown_is_refused_unless_left_alone():
    # Red for: a rate that is said to be held and is not.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = ExponentialLR(optimizer, 0.9)
    with pytest.raises(SwagError, match=r"ExponentialLR.*learning_rate=None"):
        apply_collection_rate(scheduler, "hold", first=1, last=2)
    apply_collection_rate(scheduler, None, first=1, last=2)
    assert not isinstance(scheduler, LambdaLR)
