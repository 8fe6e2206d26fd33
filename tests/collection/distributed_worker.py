"""Training runs in two processes; see test_distributed.py."""

import json
import shutil

import torch
import torch.distributed as dist
from conftest import lora_model
from torchrun import work
from transformers import BertTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from swag_trainer import SwagCallback, SwagError
from swag_trainer.collection.acceptance import Adaptive
from swag_trainer.collection.records import MOMENTS_FILE, RECORDS_KEY
from swag_trainer.collection.schedule import Evenly
from swag_trainer.posterior.storage import read_file

LATE = Evenly(snapshots=30, start=0.5)  # in a run of 24 steps: at each of the last 13
# Evaluations that accept twice and then reject, each time by more than 5e-5.
JUDGED = {"eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.05}


def setup_in(folder, base, texts):
    """What every run needs: a base that has three labels already, which ZeRO-3 asks for, and rows as the Trainer takes them."""
    lora_model(base).unload().save_pretrained(folder)
    tokenizer = BertTokenizerFast.from_pretrained(base)
    tokenizer.save_pretrained(folder)
    return {"base": str(folder), "rows": [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]}


def still(model):
    """The same model without dropout, so that rows have the same gradients in whichever process they are."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def a_trainer(folder, setup, swag, *, callbacks=(), eval_rows=None, kind=Trainer, **arguments):
    """A Trainer of 24 steps; two processes with 2 rows each see the rows that one process with 4 sees."""
    settings = {
        "output_dir": str(folder),
        "max_steps": 24,
        "seed": 0,
        "per_device_train_batch_size": 4 // setup.get("processes", 2),
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
        # The Trainer would multiply the loss by the number of processes, for models that divide it by the number of labels in all
        # of them. BERT's classifier takes their mean.
        "average_tokens_across_devices": False,
    } | arguments
    args = TrainingArguments(**settings)  # before the model, which ZeRO-3 then loads cut up
    return kind(
        model=still(lora_model(setup["base"], lora_dropout=0.0)),
        args=args,
        train_dataset=setup["rows"],
        eval_dataset=eval_rows,
        processing_class=BertTokenizerFast.from_pretrained(setup["base"]),
        callbacks=[*callbacks, swag],
    )


def a_callback(**arguments):
    return SwagCallback(**{"schedule": LATE, "rank": 4} | arguments)


def parts(posterior):
    gaussian = posterior.gaussian
    return {"mean": gaussian.mean, "variance": gaussian.variance, "deviations": gaussian.deviations}


def same(one, other):
    """Are two posteriors equal bit for bit?"""
    return all(torch.equal(one[part], other[part]) for part in ("mean", "variance", "deviations"))


def assert_close(one, other, *, tolerance):
    """Are two posteriors equal up to ``tolerance``, their variances up to ten times that share of the largest?"""
    for part, allowed in {
        "mean": tolerance,
        "deviations": tolerance,
        "variance": 10 * tolerance * other["variance"].max(),
    }.items():
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=float(allowed))


def outcome(trainer, swag):
    """What this process has at the end."""
    adapter = swag.posterior.adapter
    return {
        **parts(swag.posterior),
        "model": swag.posterior.layout.flatten(dict(swag._collector.weights.saved().tensors)),
        "steps": swag.posterior.collection.steps,
        "digest": adapter.digest,
        "num_collected": swag.num_collected,
    }


def run_alone(folder, setup, **arguments):
    """The same training in one process: what the others are compared with."""
    swag = a_callback(**{name: arguments.pop(name) for name in ("acceptance",) if name in arguments})
    trainer = a_trainer(folder, {**setup, "processes": 1}, swag, **arguments)
    trainer.train()
    return outcome(trainer, swag)


def refusal(function, *arguments, **settings):
    """The message of the SwagError that came; in the end both processes must still be in step."""
    try:
        function(*arguments, **settings)
    except SwagError as error:
        dist.barrier()
        return str(error)
    return ""


def ddp(folder, setup):
    swag = a_callback()
    trainer = a_trainer(folder, setup, swag)
    trainer.train()
    return {**outcome(trainer, swag), "wrapper": type(trainer.model_wrapped).__name__}


def checkpoints(folder, setup):
    """A whole run, the same one resumed in the middle, and resumes that must not be."""
    whole = a_callback()
    trainer = a_trainer(folder, setup, whole, save_strategy="steps", save_steps=8)
    trainer.train()
    results = {"whole": outcome(trainer, whole)}
    results["files"] = {name: dict(read_file(folder / name / MOMENTS_FILE)[0]) for name in ("checkpoint-16", "checkpoint-24")}
    dist.barrier()

    def resume(step, swag=None, source=folder):
        swag = swag or a_callback()
        trainer = a_trainer(folder, setup, swag, save_strategy="no")
        trainer.train(resume_from_checkpoint=str(source / f"checkpoint-{step}"))
        return trainer, swag

    results["resumed"] = outcome(*resume(16))
    results["other world"] = refusal(resume, 16, source=type(folder)(setup["single"]))
    results["other rank"] = refusal(resume, 16, a_callback(rank=3))
    results["on two servers"] = outcome(*resume(16, source=own_copy(folder)))
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / "checkpoint-16" / MOMENTS_FILE).unlink()
    dist.barrier()
    results["no moments"] = refusal(resume, 16)
    return results


def own_copy(folder):
    """Checkpoint 16 as it lies on each of two servers under ``save_on_each_node``: the second has no moments and no digest."""
    mine = folder / f"server-{dist.get_rank()}"
    shutil.copytree(folder / "checkpoint-16", mine / "checkpoint-16")
    if dist.get_rank() == 1:
        (mine / "checkpoint-16" / MOMENTS_FILE).unlink()
        path = mine / "checkpoint-16" / "trainer_state.json"
        state = json.loads(path.read_text())
        state["stateful_callbacks"][RECORDS_KEY]["default"]["digest"] = None
        path.write_text(json.dumps(state))
    return mine


class Perturb(TrainerCallback):
    """Makes one process's adapter another one."""

    def on_step_end(self, args, state, control, *, model, **kwargs):
        if state.global_step == 20 and dist.get_rank() == 1:
            with torch.no_grad():
                next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)[0, 0] += 1e-6


def mismatched_ranks(folder, setup):
    swag = a_callback()
    return refusal(a_trainer(folder, setup, swag, callbacks=[Perturb()]).train)


def no_collective(*arguments, **settings):
    raise AssertionError("A collective in a hook that one process alone runs.")


class Alone(SwagCallback):
    """Fails where `state` or `on_push_begin` talk to other processes."""

    def state(self):
        return self._alone(super().state)

    def on_push_begin(self, *arguments, **settings):
        return self._alone(super().on_push_begin, *arguments, **settings)

    def _alone(self, function, *arguments, **settings):
        names = ("all_gather", "all_gather_object", "all_reduce", "barrier", "broadcast", "broadcast_object_list")
        kept = {name: getattr(dist, name) for name in names}
        try:
            for name in names:
                setattr(dist, name, no_collective)
            return function(*arguments, **settings)
        finally:
            for name in names:
                setattr(dist, name, kept[name])


def pushes(trainer):
    """For every commit of the repository in the first process's own Hub: whether its posterior is that of its adapter."""
    from conftest import _HUB
    from huggingface_hub import HfApi, snapshot_download

    from swag_trainer import SwagPosterior

    found = []
    if dist.get_rank() == 0:
        for commit in reversed(HfApi().list_repo_commits(trainer.args.hub_model_id)):
            folder = snapshot_download(
                trainer.args.hub_model_id, revision=commit.commit_id, allow_patterns=["adapter_*", "swag_*"]
            )
            try:
                found.append([commit.title, SwagPosterior.from_pretrained(folder).num_collected])
            except SwagError as error:
                found.append([commit.title, type(error).__name__])
        assert _HUB.hub.log
    dist.barrier()
    return found


def push(folder, setup, make=a_trainer):
    swag = Alone(LATE, rank=4)
    trainer = make(
        folder,
        setup,
        swag,
        save_strategy="steps",
        save_steps=8,
        push_to_hub=True,
        hub_model_id="user/distributed",
        hub_strategy="every_save",
        hub_always_push=True,
        hub_token="hf_test",
    )
    trainer.train()
    result = outcome(trainer, swag)
    trainer.push_to_hub()
    return {**result, "commits": pushes(trainer)}


def too_few(folder, setup):
    """A run that ends before its second collection."""
    swag = a_callback(schedule=Evenly(snapshots=2, start=0.5))
    trainer = a_trainer(folder, setup, swag, callbacks=[Stop()])
    trainer.train()
    return [refusal(lambda: swag.posterior), swag.num_collected]


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 14


def adaptive(folder, setup):
    """Collection that the evaluations decide about, and the same one resumed."""

    def run(checkpoint=None):
        swag = a_callback(acceptance=Adaptive())
        trainer = a_trainer(
            folder,
            setup,
            swag,
            **JUDGED,
            eval_rows=setup["rows"],
            save_strategy="steps",
            save_steps=8,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return {**outcome(trainer, swag), "score": swag._collector.score}

    return {"whole": run(), "resumed": run(str(folder / "checkpoint-16"))}


if __name__ == "__main__":
    work(
        {
            "ddp": ddp,
            "checkpoints": checkpoints,
            "mismatched_ranks": mismatched_ranks,
            "push": push,
            "too_few": too_few,
            "adaptive": adaptive,
        }
    )
