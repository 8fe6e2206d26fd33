"""Which weights train while they are collected, and at which point the optimizer evaluates."""

import pytest
import torch
from conftest import lora_model, trainer_for
from peft import LoraConfig
from peft.optimizers import create_loraplus_optimizer
from transformers import TrainerCallback

from swag_trainer import Every, SwagCallback, SwagError, SwagPosterior


class At(TrainerCallback):
    """Does something to the model at the beginning of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, *, model, **kwargs):
        if state.global_step == self.step:
            self.action(model)


def switch(model, trains, part="lora_"):
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.requires_grad_(trains)


def test_weights_that_are_unfrozen_before_the_first_collection_are_in_the_posterior(base_folder, rows, tokenizer, tmp_path):
    # Red for: the head first, then LoRA: a posterior of the head alone beside LoRA's last iterate.
    model = lora_model(base_folder)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    switch(model, False)
    swag = SwagCallback(Every(steps=2, start=0.5), learning_rate=None)
    callbacks = [At(6, lambda model: switch(model, True)), swag]
    trainer = trainer_for(model, rows, tokenizer, tmp_path, callbacks=callbacks)
    trainer.optimizer = optimizer
    trainer.train()
    keys = SwagPosterior.from_pretrained(tmp_path).layout.keys
    assert sum("lora_A" in key for key in keys) == sum("lora_B" in key for key in keys) > 0
    assert any("classifier" in key for key in keys)
    deviations = swag.posterior.layout.unflatten(swag.posterior.gaussian.deviations)
    assert all(deviations[key].abs().max() > 0 for key in keys if "lora_" in key)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda model: switch(model, False, "lora_A"), r"At step 16 '.*lora_A.*' was frozen while .* \(4 changed\)"),
        (lambda model: switch(model, True, "LayerNorm.bias"), r"At step 16 '.*LayerNorm.bias' began to train"),
        (lambda model: model.merge_adapter(), "At step 16 the adapter 'default' is merged into the base at"),
        (
            lambda model: (model.add_adapter("b", LoraConfig(r=2, target_modules=["query"])), model.set_adapter("b")),
            "At step 16 the active adapter is 'b', and 'default' is collected",
        ),
    ],
)
def test_a_change_of_what_trains_after_the_first_collection_names_the_step(
    base_folder, rows, tokenizer, tmp_path, action, words
):
    # Red for: a merged adapter, whose variance is a tenth; an adapter that no longer trains, collected in silence.
    callbacks = [At(15, action), SwagCallback(Every(steps=2, start=0.5))]
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=callbacks)
    with pytest.raises(SwagError, match=words):
        trainer.train()


def test_a_schedule_free_optimizer_is_read_at_the_point_that_it_evaluates(base_folder, rows, tokenizer, tmp_path):
    # Red for: the training point collected; a mean that trainer.evaluate() moves afterwards.
    swag, seen = SwagCallback(Every(steps=2, start=0.5), learning_rate=None), []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, *, model, optimizer, **kwargs):
            if state.global_step in swag._run.collection_steps:
                optimizer.eval()
                seen.append(torch.cat([p.detach().flatten() for p in swag._collector.weights.parameters()]))
                optimizer.train()

    trainer = trainer_for(
        lora_model(base_folder),
        rows,
        tokenizer,
        tmp_path,
        callbacks=[Watch(), swag],
        eval_rows=rows[:8],
        optim="schedule_free_adamw",
        lr_scheduler_type="constant",
    )
    trainer.train()
    assert len(seen) == swag.num_collected
    torch.testing.assert_close(swag.posterior.gaussian.mean, torch.stack(seen).mean(0), rtol=0, atol=1e-5)
    trainer.evaluate()
    assert all(
        torch.equal(parameter, swag.posterior.mean[key])
        for key, parameter in zip(swag.posterior.layout.keys, swag._collector.weights.parameters(), strict=True)
    )


def test_the_ratio_of_lora_plus_is_kept_and_recorded(base_folder, rows, tokenizer, tmp_path):
    # Red for: a number as learning_rate that gives A and B one rate.
    model = lora_model(base_folder)
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.0)
    swag = SwagCallback(learning_rate=5e-4)
    trainer = trainer_for(model, rows, tokenizer, tmp_path, callbacks=[swag])
    trainer.optimizer = optimizer
    trainer.train()
    rates = SwagPosterior.from_pretrained(tmp_path).collection.group_learning_rates
    assert max(rates) / rates[0] == pytest.approx(16) and rates[0] == pytest.approx(5e-4)
