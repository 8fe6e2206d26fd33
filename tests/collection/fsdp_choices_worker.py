"""Multiple choice by a causal language model in two processes that cut up the weights (FSDP2); see test_fsdp_choices.py."""

from choices import choice_tokenizer, language_model, questions
from distributed_worker import a_callback, parts, still
from engines_worker import ShardingTrainer
from torchrun import work
from transformers import Trainer, TrainingArguments

from swag_trainer import ChoiceSettings, MultipleChoiceMixin


class ChoiceTrainer(MultipleChoiceMixin, Trainer):
    pass


class ShardingChoiceTrainer(MultipleChoiceMixin, ShardingTrainer):
    pass


def choices(folder, setup, kind=ShardingChoiceTrainer, processes=2, **arguments):
    """A run of 24 steps of 4 questions, and its posterior in the folder."""
    swag = a_callback()
    args = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=24,
        seed=0,
        per_device_train_batch_size=4 // processes,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        average_tokens_across_devices=False,
        **arguments,
    )
    trainer = kind(
        model=still(language_model("llama", setup["base"])),
        args=args,
        train_dataset=questions(),
        processing_class=choice_tokenizer(),
        choice_settings=ChoiceSettings(scoring="answers"),
        callbacks=[swag],
    )
    trainer.train()
    if trainer.is_world_process_zero():
        swag.posterior.save_pretrained(folder / "run")
    parameter = swag._collector.weights.parameters()[0].data
    return {**parts(swag.posterior), "parameter": type(parameter).__name__, "task": swag.posterior.record.task}


def sharded(folder, setup):
    return choices(folder, setup, fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]})


if __name__ == "__main__":
    work({"sharded": sharded})
