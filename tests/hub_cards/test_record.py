from dataclasses import replace

import pytest
import torch
from test_card import SomeTuning, some_posterior, tuned

from hub_cards.record import abstention_threshold, identity, tuning_facts


def test_the_identity_changes_with_everything_that_measured_figures_depend_on():
    # Red for: figures kept for other weights, another scale, another rank, or another tuning.
    changed = [
        some_posterior(),
        some_posterior(adapter={"lora_A.weight": torch.zeros(1, 3), "lora_B.weight": torch.zeros(2, 1)}),
        some_posterior(scale=0.25),
        some_posterior(rank=2),
        tuned(SomeTuning(1.25, "d", {})),
        tuned(SomeTuning(1.5, "d", {})),
    ]
    assert len({identity(posterior) for posterior in changed}) == len(changed)
    assert identity(some_posterior()) == identity(replace(some_posterior()))


def test_a_posterior_of_a_version_that_did_not_tune_has_no_facts_of_tuning():
    # Red for: a missing attribute that stops the card.
    for record in (object(), some_posterior().provenance, tuned(None).provenance, tuned("soon").provenance):
        assert tuning_facts(record) == []
        assert abstention_threshold(record) is None


@pytest.mark.parametrize("value", [0, 1, -0.5, 2.0, True, "0.5", [0.5]])
def test_only_a_probability_is_a_threshold_to_abstain_below(value):
    # Red for: code made from whatever the record holds.
    assert abstention_threshold(tuned({"abstain_below": value}).provenance) is None
