"""Training runs in two processes that cut up the weights between them; see test_engines.py."""

from functools import partial

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from conftest import lora_model
from distributed_worker import JUDGED, LATE, Alone, a_callback, a_trainer, outcome, parts, pushes, refusal, still
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torchrun import work
from transformers import BertTokenizerFast, DataCollatorWithPadding, Trainer, TrainerCallback

from swag_trainer.collection.acceptance import Adaptive
from swag_trainer.collection.collector import SwagCollector


def loop(folder, setup):
    """A training loop without a Trainer: fully_shard, SwagCollector, and beside it the same weights put together by torch itself."""
    dist.init_process_group("gloo")
    sharded, whole, alike = (still(lora_model(setup["base"], r=3, lora_dropout=0.0)) for _ in range(3))
    mesh = init_device_mesh("cpu", (2,))
    for layer in sharded.get_base_model().bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    collectors = [SwagCollector(model, rank=4, schedule="by hand") for model in (sharded, whole, alike)]
    models = (sharded, alike)
    optimizers = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2) for m in models]
    pad = DataCollatorWithPadding(BertTokenizerFast.from_pretrained(setup["base"]))
    for step in range(1, 13):
        first = (4 * step + 2 * dist.get_rank()) % 24
        batch = pad(setup["rows"][first : first + 2])
        for model, optimizer in zip(models, optimizers, strict=True):
            model(**batch).loss.backward()
            if model is alike:  # what DDP does
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        dist.all_reduce(parameter.grad)
                        parameter.grad /= 2
            optimizer.step()
            optimizer.zero_grad()
        if step % 3 == 0:  # an evaluation leaves whole weights in the sharded model's modules
            with torch.no_grad():
                sharded(**batch)
        gathered = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
        received = [gathered]
        dist.broadcast_object_list(received)
        whole.load_state_dict(received[0])
        for collector in collectors:
            collector.collect(step=step, learning_rate=1e-2)
    results = {"reader": type(collectors[0].weights._reader).__name__}
    for name, collector in zip(("sharded", "whole", "alike"), collectors, strict=True):
        posterior = collector.finish()
        results[name] = {
            **parts(posterior),
            "digest": posterior.adapter.digest,
            "steps": posterior.collection.steps,
            "norms": posterior.collection.deviation_norms,
        }
    return results


class ShardingTrainer(Trainer):
    """FSDP2 as the Trainer runs it on GPUs. Without one accelerate takes DDP and says nothing, so it is told what it trains with."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        self.is_fsdp_enabled = True


def fsdp_trainer(folder, setup, swag, **arguments):
    wrap = {"transformer_layer_cls_to_wrap": ["BertLayer"]}
    return a_trainer(folder, setup, swag, kind=ShardingTrainer, fsdp=True, fsdp_config=wrap, **arguments)


class Ask(TrainerCallback):
    """Asks for the posterior in the middle of the run."""

    def __init__(self, swag):
        self.swag, self.answer = swag, None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 20:
            self.answer = refusal(lambda: self.swag.posterior)


def fsdp(folder, setup):
    """A whole run with evaluations, checkpoints and pushes, and the same one resumed."""
    swag, saves = Alone(LATE, rank=4), {"save_strategy": "steps", "save_steps": 8}
    ask = Ask(swag)
    judged = {"eval_rows": setup["rows"][:8], "eval_strategy": "steps", "eval_steps": 4}
    hub = {"push_to_hub": True, "hub_model_id": "user/fsdp", "hub_strategy": "every_save", "hub_token": "hf_test"}
    trainer = fsdp_trainer(folder, setup, swag, callbacks=[ask], **saves, **judged, **hub, hub_always_push=True)
    trainer.train()
    results = {"whole": outcome(trainer, swag), "model": type(trainer.model).__name__}
    results["parameter"] = type(swag._collector.weights.parameters()[0].data).__name__
    results["asked too early"] = ask.answer
    trainer.push_to_hub()
    results["commits"] = pushes(trainer)
    swag = a_callback()
    trainer = fsdp_trainer(folder, setup, swag, **judged)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-16"))
    results["resumed"] = outcome(trainer, swag)
    return results


def fsdp_adaptive(folder, setup):
    swag = a_callback(acceptance=Adaptive())
    trainer = fsdp_trainer(folder, setup, swag, eval_rows=setup["rows"], **JUDGED)
    trainer.train()
    return outcome(trainer, swag)


class Watch(TrainerCallback):
    """Writes down what the modules hold after every optimizer step, whatever their precision, and what was collected of it."""

    def __init__(self, swag):
        self.swag, self.copies, self.read = swag, [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.swag._run.due:
            weights = self.swag._collector.weights
            self.copies.append(weights.layout.flatten(dict(weights.saved().tensors)))
            self.read.append(weights.layout.flatten(weights.read()))


def zero_trainer(folder, setup, swag, *, stage, bf16=False, **arguments):
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed would compile its own for the CPU
        "zero_force_ds_cpu_optimizer": False,
    }
    return a_trainer(folder, setup, swag, deepspeed=config, bf16=bf16, **arguments)


def zero(folder, setup, *, stage):
    """A whole run with checkpoints and pushes, the same one resumed, and one that evaluations decide about."""
    swag, saves = Alone(LATE, rank=4), {"save_strategy": "steps", "save_steps": 8}
    hub = {"push_to_hub": True, "hub_model_id": f"user/zero{stage}", "hub_strategy": "every_save", "hub_token": "hf_test"}
    trainer = zero_trainer(folder, setup, swag, stage=stage, **saves, **hub, hub_always_push=True)
    trainer.train()
    results = {"whole": outcome(trainer, swag)}
    results["shapes"] = [list(parameter.shape) for parameter in swag._collector.weights.parameters()]
    trainer.push_to_hub()
    results["commits"] = pushes(trainer)
    swag = a_callback()
    trainer = zero_trainer(folder, setup, swag, stage=stage)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-16"))
    results["resumed"] = outcome(trainer, swag)
    swag = a_callback(acceptance=Adaptive())
    trainer = zero_trainer(folder / "adaptive", setup, swag, stage=stage, eval_rows=setup["rows"], **JUDGED)
    trainer.train()
    results["adaptive"] = outcome(trainer, swag)
    return results


def zero_bf16(folder, setup):
    """A run in which the modules hold rounded copies, and what these were at every collection."""
    swag = a_callback()
    watch = Watch(swag)
    trainer = zero_trainer(folder, setup, swag, stage=2, bf16=True, callbacks=[watch], learning_rate=1e-4)
    trainer.train()
    return {"whole": outcome(trainer, swag), "copies": torch.stack(watch.copies), "read": torch.stack(watch.read)}


if __name__ == "__main__":
    work(
        {
            "loop": loop,
            "fsdp": fsdp,
            "fsdp_adaptive": fsdp_adaptive,
            "zero2": partial(zero, stage=2),
            "zero2_bf16": zero_bf16,
            "zero3": partial(zero, stage=3),
        }
    )
