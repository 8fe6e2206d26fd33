"""The whole way over HTTP: train, push, and answer in a new process that knows nothing but the repository's name."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import lora_model, trainer_for
from huggingface_hub import HfApi
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from swag_trainer import SwagCallback, SwagPosterior, SwagTextClassificationPipeline

ASK = """
import json, sys
import swag_trainer
from transformers import pipeline
for arguments, texts in json.loads(sys.argv[2]):
    try:
        classify = pipeline("swag-text-classification", model=sys.argv[1], seed=0, device="cpu", **arguments)
        print(json.dumps([classify(text, top_k=None) for text in texts]))
    except Exception as error:
        print(json.dumps(str(error)))
"""


def ask_in_a_new_process(home, name, *questions, **environment):
    """Ask a repository in a process with a cache of its own.

    ``questions`` are pairs of pipeline arguments and texts, each answered by a pipeline of its own; returns an answer, or the text of
    an error, for each. ``environment`` holds further environment variables.
    """
    result = subprocess.run(
        [sys.executable, "-c", ASK, name, json.dumps(questions)],
        env={**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": str(torch.get_num_threads())} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()[-len(questions) :]]


@pytest.fixture(scope="module")
def base_repository(hub, base_folder):
    HfApi().create_repo("user/tiny-bert", exist_ok=True)
    HfApi().upload_folder(repo_id="user/tiny-bert", folder_path=base_folder)
    return "user/tiny-bert"


def train_and_push(base, rows, tokenizer, folder, repo, **arguments):
    swag = SwagCallback(rank=6)
    trainer = trainer_for(
        lora_model(base),
        rows,
        tokenizer,
        folder,
        callbacks=[swag],
        push_to_hub=True,
        hub_model_id=repo,
        hub_token="hf_test",
        **arguments,
    )
    trainer.train()
    trainer.push_to_hub()
    trainer.model.eval()
    return trainer, swag


def test_a_new_process_gives_the_training_process_answers_bit_for_bit(base_repository, hub, rows, texts, tokenizer, tmp_path):
    # Red for: labels, a head of 3 classes, a digit of a weight or the seed lost between training and loading.
    trainer, swag = train_and_push(base_repository, rows, tokenizer, tmp_path / "run", "user/tiny-swag")
    stored = swag.posterior.stored_as("bfloat16")
    here = SwagTextClassificationPipeline(model=trainer.model, tokenizer=tokenizer, posterior=stored, device="cpu")
    # Through JSON, as in the other process: Python writes floats so that they come back exactly.
    expected = json.loads(json.dumps([here(text, top_k=None, seed=0) for text in texts[:8]]))
    assert ask_in_a_new_process(tmp_path / "home", "user/tiny-swag", ({}, texts[:8])) == [expected]
    assert {row["label"] for row in expected[0]} == {"negative", "neutral", "positive"}

    # Offline, from the cache that the process before left: the same answer, and not one request.
    requests = len(hub.hub.log)
    cold = ({"model_kwargs": {"cache_dir": str(tmp_path / "cold")}}, texts[:1])
    warm, refused = ask_in_a_new_process(tmp_path / "home", "user/tiny-swag", ({}, texts[:8]), cold, HF_HUB_OFFLINE="1")
    assert len(hub.hub.log) == requests
    assert warm == expected and "offline" in refused

    # Plain peft, which has never heard of us, gives the posterior mean's logits.
    plain_base = AutoModelForSequenceClassification.from_pretrained(base_repository, num_labels=3, ignore_mismatched_sizes=True)
    plain = PeftModel.from_pretrained(plain_base, "user/tiny-swag").eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = plain(**batch).logits
        assert torch.equal(logits, trainer.model(**batch).logits)
    swa = here(texts, scale=0, batch_size=len(texts), top_k=None)
    scores = [sorted(row["score"] for row in rows) for rows in swa]
    np.testing.assert_allclose(scores, logits.double().softmax(-1).sort(-1)[0], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_private_repository_and_a_pinned_revision_are_reached(base_repository, rows, texts, tokenizer, tmp_path):
    # Red for: a token or a revision that does not reach the posterior's own file.
    trainer, swag = train_and_push(
        base_repository, rows, tokenizer, tmp_path / "run", "user/secret-swag", hub_private_repo=True
    )
    pinned = HfApi().list_repo_commits("user/secret-swag")[0].commit_id
    (expected,) = ask_in_a_new_process(tmp_path / "home", "user/secret-swag", ({}, texts[:2]))
    changed = swag.posterior.with_scale(50.0).push_to_hub("user/secret-swag")
    assert HfApi().model_info("user/secret-swag").private
    at_pinned = ({"model_kwargs": {"adapter_kwargs": {"revision": pinned}}}, texts[:2])
    newest, old = ask_in_a_new_process(tmp_path / "home", "user/secret-swag", ({}, texts[:2]), at_pinned)
    assert old == expected != newest
    assert SwagPosterior.from_pretrained("user/secret-swag", revision=changed.oid).scale == 50.0
    with_token = ({"token": "hf_test"}, texts[:2])
    refused, answered = ask_in_a_new_process(tmp_path / "other", "user/secret-swag", ({}, texts[:1]), with_token, HF_TOKEN="")
    assert "user/secret-swag" in refused and "private" in refused
    assert answered == newest


def test_every_commit_of_a_run_that_pushes_while_it_trains_holds_a_pair_that_belongs_together(
    base_repository, rows, tokenizer, tmp_path
):
    # Red for: a posterior written in on_save, after the upload: a new adapter beside the posterior of an earlier step.
    train_and_push(
        base_repository,
        rows,
        tokenizer,
        tmp_path / "run",
        "user/busy-swag",
        save_strategy="steps",
        save_steps=6,
        hub_strategy="every_save",
        hub_always_push=True,
    )
    counts = []
    for commit in HfApi().list_repo_commits("user/busy-swag"):
        files = HfApi().list_repo_files("user/busy-swag", revision=commit.commit_id)
        if "swag_posterior.safetensors" in files:
            counts.append(SwagPosterior.from_pretrained("user/busy-swag", revision=commit.commit_id).num_collected)
    assert len(counts) >= 3
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[0]
