"""Every commit that a run leaves on the Hub, by every hub strategy: its posterior belongs to its adapter, and to its step."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from conftest import lora_model, trainer_for
from huggingface_hub import HfApi, snapshot_download
from peft import LoraConfig
from safetensors.torch import load_file
from trajectories import Witness, assert_posterior_of, same
from transformers import TrainerCallback

from swag_trainer import Every, SwagCallback, SwagPosterior
from swag_trainer.collection.records import MOMENTS_FILE
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.storage import read_file

ADAPTER_FILE = "adapter_model.safetensors"
DUE = [4, 8, 12, 16]  # saved and pushed at 3, 6, 9, 12, 15 and 16


@pytest.fixture
def slow_hub(hub, monkeypatch):
    """The loopback Hub, which takes its time like the real one: a run goes on while its uploads are under way."""
    handler = hub.server.RequestHandlerClass
    route = handler._route

    def slowly(self):
        if self.command in ("POST", "PUT"):
            time.sleep(0.01)
        route(self)

    monkeypatch.setattr(handler, "_route", slowly)
    return hub


@pytest.fixture
def pushing(slow_hub, base_folder, rows, tokenizer, tmp_path, request):
    """Train 16 steps with pushes into a repository of the test's own: (trainer, callback, witness, repository)."""
    repository = f"user/strategy-{abs(hash(request.node.nodeid))}"

    def start(swag=None, *, model=None, folder="run", callbacks=(), resume=None, watch=None, **arguments):
        swag = swag or SwagCallback(Every(steps=4, start=0.0), rank=2)
        witness = Witness(swag.adapter_name or "default")
        settings = {"max_steps": 16, "save_strategy": "steps", "save_steps": 3, "hub_always_push": True} | arguments
        trainer = trainer_for(
            model or lora_model(base_folder),
            rows,
            tokenizer,
            tmp_path / folder,
            callbacks=[witness, swag, *callbacks],
            push_to_hub=True,
            hub_model_id=repository,
            hub_token="hf_test",
            **settings,
        )
        if watch:
            watch(trainer)
        trainer.train(resume_from_checkpoint=resume and str(resume))
        return trainer, swag, witness, repository

    return start


def commits(repository, since=None):
    """(title, commit, files) of all that came after a commit, oldest first."""
    found = list(reversed(HfApi().list_repo_commits(repository)))
    found = found[1 + [c.commit_id for c in found].index(since) :] if since else found
    return [(c.title, c.commit_id, HfApi().list_repo_files(repository, revision=c.commit_id)) for c in found]


def step_of(title, last):
    """The optimizer step that a commit is of; the commits after training have no number."""
    match = re.search(r"step (\d+)", title)
    return int(match[1]) if match else last


def check_every_commit(repository, witness, swag, *, folder="", due=DUE, since=None):
    """Check that each commit with an adapter is of its step, and that a posterior beside it is the adapter's; return the titles."""
    prefix = folder and f"{folder}/"
    titles = []
    for title, commit, files in commits(repository, since):
        if f"{prefix}{ADAPTER_FILE}" not in files:
            assert f"{prefix}{POSTERIOR_FILE}" not in files
            continue
        titles.append(title)
        step = step_of(title, 16)
        downloaded = Path(snapshot_download(repository, revision=commit)) / folder
        adapter = load_file(downloaded / ADAPTER_FILE)
        expected = swag.posterior.mean if "Training in progress" not in title else witness.weights[step]
        assert all(torch.equal(adapter[key], weight) for key, weight in expected.items()), title
        passed = [moment for moment in due if moment <= step]
        assert (f"{prefix}{POSTERIOR_FILE}" in files) == (len(passed) >= 2), title
        if len(passed) >= 2:
            posterior = SwagPosterior.from_pretrained(downloaded)
            assert_posterior_of(posterior, witness, passed)
            if not folder:
                assert same(SwagPosterior.from_pretrained(repository, revision=commit), posterior)
    return titles


@pytest.mark.parametrize("always_push", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_commit_of_every_save_holds_the_posterior_of_its_step(pushing, always_push):
    # Red for: a posterior written after the upload began, or into the folder that an upload is still reading.
    trainer, swag, witness, repository = pushing(hub_strategy="every_save", hub_always_push=always_push)
    trainer.push_to_hub()
    titles = check_every_commit(repository, witness, swag)
    steps = [step_of(title, "end") for title in titles]
    if always_push:
        assert steps == [3, 6, 9, 12, 15, 16, "end"]
    else:
        assert steps[-1] == "end" and len(steps) >= 2  # how many lie between depends on how long an upload takes


@pytest.mark.parametrize("how", ["push_to_hub", "save_model"])
def test_the_end_strategy_pushes_one_pair_and_it_is_the_final_one(pushing, how):
    # Red for: a posterior of the last iterate beside the mean, or a push while the run is under way.
    trainer, swag, witness, repository = pushing(hub_strategy="end")
    getattr(trainer, how)()
    assert len(check_every_commit(repository, witness, swag)) == 1
    assert same(SwagPosterior.from_pretrained(repository), swag.posterior)


def check_moments(folder, witness):
    """Check that a checkpoint from the Hub holds the moments that its trainer_state.json speaks of, and the adapter of its step."""
    state = json.loads((folder / "trainer_state.json").read_text())
    record = state["stateful_callbacks"]["swag_trainer"]["default"]
    due = [step for step in DUE if step <= state["global_step"]]
    assert record["step"] == state["global_step"]
    if due:
        _, document, digest = read_file(folder / MOMENTS_FILE)
        assert digest == record["digest"]
        assert [row[0] for row in document["snapshots"]] == due
    else:
        assert record["digest"] is None
    adapter = load_file(folder / ADAPTER_FILE)
    assert all(torch.equal(adapter[key], weight) for key, weight in witness.weights[state["global_step"]].items())
    return state["global_step"]


@pytest.mark.parametrize("strategy", ["checkpoint", pytest.param("all_checkpoints", marks=pytest.mark.slow)])
def test_the_checkpoints_on_the_hub_hold_the_moments_of_their_step(pushing, tmp_path, strategy):
    # Red for: moments written after the upload, or left out of it; a last-checkpoint that mixes two steps.
    trainer, swag, witness, repository = pushing(hub_strategy=strategy)
    titles = check_every_commit(repository, witness, swag)
    assert [step_of(title, "end") for title in titles] == [3, 3, 6, 6, 9, 9, 12, 12, 15, 15, 16, 16]
    for title, commit, _ in commits(repository):
        if not title.endswith("checkpoint"):
            continue
        folder = "last-checkpoint" if strategy == "checkpoint" else f"checkpoint-{step_of(title, None)}"
        downloaded = Path(snapshot_download(repository, revision=commit, allow_patterns=[f"{folder}/*"]))
        assert check_moments(downloaded / folder, witness) == step_of(title, None)
    # Another machine goes on from the Hub.
    _, commit, _ = next(entry for entry in commits(repository) if "step 9, checkpoint" in entry[0])
    copy = snapshot_download(repository, revision=commit, local_dir=tmp_path / "copy")
    last = Path(copy) / ("last-checkpoint" if strategy == "checkpoint" else "checkpoint-9")
    resumed = SwagCallback(Every(steps=4, start=0.0), rank=2, resume_from=last)
    pushing(resumed, folder="elsewhere", resume=last, hub_strategy="end")
    assert same(resumed.posterior, swag.posterior)


def test_no_commit_of_a_second_run_holds_the_posterior_of_the_first(pushing, tmp_path):
    # Red for: the posterior of an earlier run beside the new adapter, in the folder or in the repository, until there is a new one.
    trainer, first, _, repository = pushing(hub_strategy="every_save")
    trainer.push_to_hub()
    before = [commit for _, commit, _ in commits(repository)]
    assert same(SwagPosterior.from_pretrained(repository, revision=before[-1]), first.posterior)
    swag = SwagCallback(Every(steps=4, start=0.4), rank=2)
    trainer, swag, witness, _ = pushing(swag, hub_strategy="every_save", seed=1, learning_rate=2e-2)
    trainer.push_to_hub()
    title, deletion, files = commits(repository, since=before[-1])[0]
    assert title == f"Delete {POSTERIOR_FILE} of an earlier run" and POSTERIOR_FILE not in files
    check_every_commit(repository, witness, swag, due=[8, 12, 16], since=deletion)
    assert same(SwagPosterior.from_pretrained(repository), swag.posterior)


def test_a_second_run_without_a_posterior_leaves_none_on_the_hub(pushing, tmp_path):
    # Red for: the posterior of the first run beside the adapter of a second one that was stopped early.
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    trainer, first, _, repository = pushing(hub_strategy="end")
    trainer.push_to_hub()
    trainer, swag, witness, _ = pushing(hub_strategy="end", callbacks=[Stop()], seed=1)
    trainer.push_to_hub()
    files = HfApi().list_repo_files(repository)
    assert ADAPTER_FILE in files and POSTERIOR_FILE not in files
    assert not (tmp_path / "run" / POSTERIOR_FILE).exists()


def test_a_push_before_any_training_changes_no_posterior(pushing, base_folder, rows, tokenizer, tmp_path):
    # Red for: the posterior of a finished run lost because its folder was pushed again by a Trainer that trained nothing.
    trainer, swag, _, repository = pushing(hub_strategy="end")
    again = trainer_for(
        trainer.model, rows, tokenizer, tmp_path / "run", callbacks=[SwagCallback()], push_to_hub=True, hub_model_id=repository,
        hub_token="hf_test",
    )  # fmt: skip
    again.push_to_hub()
    assert same(SwagPosterior.from_pretrained(repository), swag.posterior)


def test_a_second_callback_has_a_pair_of_its_own_in_every_commit(pushing, tmp_path):
    # Red for: the adapter of one beside the posterior of the other.
    late = SwagCallback(Every(steps=2, start=0.5), rank=2, name="late")
    trainer, swag, witness, repository = pushing(hub_strategy="every_save", callbacks=[late])
    trainer.push_to_hub()
    check_every_commit(repository, witness, swag)
    check_every_commit(repository, witness, late, folder="late", due=[8, 10, 12, 14, 16])


def test_of_two_adapters_each_commit_holds_the_posterior_beside_the_one_that_trained(pushing, base_folder):
    # Red for: a posterior at the top of the repository, where the adapter "default" lies.
    model = lora_model(base_folder)
    model.add_adapter("blue", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    model.set_adapter("blue")
    swag = SwagCallback(Every(steps=4, start=0.0), rank=2, adapter_name="blue")
    trainer, swag, witness, repository = pushing(swag, model=model, hub_strategy="every_save")
    trainer.push_to_hub()
    assert POSTERIOR_FILE not in HfApi().list_repo_files(repository)
    check_every_commit(repository, witness, swag, folder="blue")


def test_a_run_stopped_by_hand_is_pushed_with_its_own_adapter(pushing):
    # Red for: the adapter of an old checkpoint of the same step, which lies in the folder, beside the new run's posterior.
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 9:
                raise KeyboardInterrupt

    pushing(hub_strategy="end")
    swag, witness, interrupted = SwagCallback(Every(steps=4, start=0.0), rank=2), Witness(), []
    with pytest.raises(KeyboardInterrupt):
        pushing(
            swag, callbacks=[witness, Interrupt()], watch=interrupted.append, hub_strategy="end", save_strategy="no", seed=1
        )
    repository = interrupted[0].push_to_hub().repo_url.repo_id
    posterior = SwagPosterior.from_pretrained(repository)
    assert_posterior_of(posterior, witness, [4, 8])
    assert all(torch.equal(posterior.adapter.tensors[key], weight) for key, weight in witness.weights[9].items())
