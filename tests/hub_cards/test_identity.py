from dataclasses import replace

import torch
from conftest import lora_model, trainer_for
from test_card import some_posterior, some_tuning, tuned

from hub_cards.identity import identity, risk_to_show
from swag_trainer import Every, SwagCallback, load_posterior
from swag_trainer.posterior.tuning import CalibratedThreshold


def test_the_identity_changes_with_everything_that_measured_figures_depend_on():
    # Red for: figures kept for other weights, another scale, another rank, or another tuning.
    changed = [
        some_posterior(),
        some_posterior(adapter={"lora_A.weight": torch.zeros(1, 3), "lora_B.weight": torch.zeros(2, 1)}),
        some_posterior(scale=0.25),
        some_posterior(rank=2),
        tuned(some_tuning()),
        tuned(some_tuning(temperature=1.5)),
    ]
    assert len({identity(posterior) for posterior in changed}) == len(changed)
    assert identity(some_posterior()) == identity(replace(some_posterior()))


def test_two_posteriors_beside_one_adapter_have_two_identities(base_folder, rows, tokenizer, tmp_path):
    # Red for: hashing the adapter alone, which two callbacks of one run share with final_weights="trained": a card of the one was built
    # from metrics of the other. Saving and loading must not change the identity.
    early, late = (
        SwagCallback(Every(steps=2, start=start), rank=2, final_weights="trained", name=name)
        for start, name in ((0.25, "early"), (0.5, "late"))
    )
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[early, late], max_steps=12)
    trainer.train()
    assert early.posterior.adapter.digest == late.posterior.adapter.digest
    assert identity(early.posterior) != identity(late.posterior)
    for dtype in ("bfloat16", "float32"):
        early.posterior.save_pretrained(tmp_path / dtype, dtype=dtype)
        assert identity(load_posterior(tmp_path / dtype)) == identity(early.posterior)


def test_two_posteriors_of_one_run_have_identities_of_their_own(base_folder, rows, tokenizer, tmp_path):
    # Red for: an identity of the adapter, which both callbacks save as training left it. One's card took the other's metrics.
    first, second = (
        SwagCallback(rank=5, final_weights="trained"),
        SwagCallback(Every(steps=2), name="b", final_weights="trained"),
    )
    diagonal = SwagCallback(rank=0, name="c", final_weights="trained")
    callbacks = [first, second, diagonal]
    trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=callbacks).train()
    assert len({one.posterior.adapter.digest for one in callbacks}) == 1
    assert len({identity(one.posterior) for one in callbacks}) == 3


def test_the_risk_that_is_shown_is_one_that_can_be_asked_for():
    # Red for: a threshold that was not found, a coverage taken for a risk, the smallest risk where one near 0.05 is there.
    assert risk_to_show(some_posterior()) is None
    assert risk_to_show(tuned(some_tuning())) == 0.1
    thresholds = [CalibratedThreshold("risk", risk, 0.9, 0.5, 0.0) for risk in (0.01, 0.04, 0.2)]
    assert risk_to_show(tuned(some_tuning(thresholds=thresholds))) == 0.04
    assert risk_to_show(tuned(some_tuning(thresholds=[CalibratedThreshold("coverage", 0.5, 0.9, 0.5, 0.0)]))) is None
