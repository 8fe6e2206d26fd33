import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import WORDS, lora_model, trainer_for
from decoders import save_decoder
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoTokenizer, pipeline

from swag_trainer import SwagCallback, SwagError, SwagPosterior, SwagTextClassificationPipeline

PIECES = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
SHORT = 7  # no tokenizer but the one beside the adapter cuts texts at that many tokens


@pytest.fixture
def run(trained, tokenizer, tmp_path):
    """A folder with an adapter, its posterior and a tokenizer of its own."""
    trainer, _ = trained
    folder = shutil.copytree(trainer.args.output_dir, tmp_path / "beside")
    tokenizer.model_max_length = SHORT
    tokenizer.save_pretrained(folder)
    return Path(folder)


def classifier(model, **arguments):
    return pipeline("swag-text-classification", model=str(model), device="cpu", **arguments)


def asked_offline(home, repo, base):
    """The tokenizer's length in a process that may not ask the Hub, or its last words."""
    code = (
        "import swag_trainer; from transformers import pipeline; "
        f"options = {{'model_kwargs': {{'base_model': {str(base)!r}}}}}; "
        f"print(pipeline('swag-text-classification', model={repo!r}, device='cpu', **options).tokenizer.model_max_length)"
    )
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_the_tokenizer_beside_the_adapter_is_taken_and_an_explicit_one_before_it(run, base_folder, tokenizer):
    # Red for: the base model's tokenizer, which transformers would take, or ours in place of the one that somebody passed.
    assert classifier(run).tokenizer.model_max_length == SHORT
    assert classifier(run, tokenizer=str(base_folder)).tokenizer.model_max_length == 64
    assert classifier(run, tokenizer=tokenizer).tokenizer is tokenizer
    assert classifier(run, tokenizer=(str(base_folder), {"model_max_length": 9})).tokenizer.model_max_length == 9
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (run / name).unlink()
    assert classifier(run).tokenizer.model_max_length == 64


def test_a_repository_predicts_with_its_own_tokenizer_of_the_same_commit(run, hub, base_folder):
    # Red for: the base's tokenizer for a repository, or that of another commit.
    first = SwagPosterior.from_pretrained(run).push_to_hub("user/with-tokenizer")
    HfApi().upload_folder(repo_id="user/with-tokenizer", folder_path=run, allow_patterns="tokenizer*")
    for revision, length in ((first.oid, 64), ("main", SHORT)):
        settings = {"base_model": str(base_folder), "adapter_kwargs": {"revision": revision}}
        assert classifier("user/with-tokenizer", model_kwargs=settings).tokenizer.model_max_length == length


@pytest.mark.slow
def test_a_repository_has_its_own_tokenizer_offline_too(run, hub, base_folder, tmp_path):
    # Red for: a request that offline mode cannot make, or the base's tokenizer in its place.
    SwagPosterior.from_pretrained(run).push_to_hub("user/cached")
    HfApi().upload_folder(repo_id="user/cached", folder_path=run, allow_patterns="tokenizer*")
    snapshot_download("user/cached", cache_dir=tmp_path / "home" / "hub")
    requests = len(hub.hub.log)
    assert asked_offline(tmp_path / "home", "user/cached", base_folder) == str(SHORT)
    assert len(hub.hub.log) == requests


@pytest.mark.slow
def test_offline_nobody_guesses_whether_a_repository_has_a_tokenizer(run, base_folder, tmp_path):
    # Red for: the base's tokenizer, in silence, for a repository whose own was never fetched.
    SwagPosterior.from_pretrained(run).push_to_hub("user/half-cached")
    HfApi().upload_folder(repo_id="user/half-cached", folder_path=run, allow_patterns="tokenizer*")
    patterns = ["swag_posterior.safetensors", "adapter_*"]
    snapshot_download("user/half-cached", cache_dir=tmp_path / "home" / "hub", allow_patterns=patterns)
    assert "Whether 'user/half-cached' has a tokenizer beside the adapter is not known" in asked_offline(
        tmp_path / "home", "user/half-cached", base_folder
    )


def test_a_tokenizer_that_cannot_be_read_is_one_error_that_says_what_to_do(run):
    # Red for: a traceback of the tokenizers library, or the base's tokenizer in its place.
    (run / "tokenizer.json").write_text("{")
    with pytest.raises(SwagError, match=r"tokenizer of .*beside.* cannot be loaded.*tokenizer=\.\.\."):
        classifier(run)


def test_a_model_made_by_hand_needs_a_tokenizer(trained):
    # Red for: "NoneType is not callable" at the first text.
    trainer, swag = trained
    with pytest.raises(SwagError, match=r"its tokenizer cannot be determined: pass tokenizer=\.\.\."):
        SwagTextClassificationPipeline(model=trainer.model, posterior=swag.posterior)


def test_a_decoder_without_a_padding_token_answers_batches_with_the_one_it_was_trained_with(texts, tmp_path):
    # Red for: a padding token that the posterior's file forgets: transformers then refuses every batch of the loaded model.
    base = save_decoder(tmp_path / "decoder", WORDS)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    model = lora_model(base, target_modules=["q_proj", "v_proj"])
    swag = SwagCallback()
    trainer_for(model, rows, tokenizer, tmp_path / "run", callbacks=[swag]).train()
    assert swag.posterior.record.pad_token_id == 0

    for name in ("tokenizer_config.json", "tokenizer.json"):  # what a push of the posterior alone leaves out
        (tmp_path / "run" / name).unlink(missing_ok=True)
    classify = classifier(tmp_path / "run", num_samples=3)
    assert classify.model.config.pad_token_id == 0 and classify.tokenizer.pad_token == "<end>"
    one_by_one = [classify(text, top_k=None) for text in texts[:5]]
    for alone, together in zip(one_by_one, classify(texts[:5], batch_size=5, top_k=None), strict=True):
        scores = [{answer["label"]: answer["score"] for answer in answers} for answers in (alone, together)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    with torch.no_grad():  # and the mean's answers are plain PEFT's for the last token of the text
        plain = model.eval()(**tokenizer(texts[0], return_tensors="pt")).logits.softmax(-1)[0]
    mean = {answer["label"]: answer["score"] for answer in classify(texts[0], top_k=None, scale=0)}
    assert [mean[label] for label in ("negative", "neutral", "positive")] == pytest.approx(plain.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("tokenizer.json", {"post_processor": {"type": "Nothing"}}, "cannot be loaded: Exception"),
        ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length is 'long'"),
        ("tokenizer_config.json", {"model_max_length": -1}, "model_max_length is -1"),
        ("tokenizer.json", {"model": PIECES | {"vocab": {"a": 0}}}, "cannot encode the text"),
    ],
)
def test_files_that_no_tokenizer_can_use_are_one_error_of_ours(run, name, changes, words):
    # Red for: `Exception` itself, which the tokenizers library raises; lengths that are found out at the first text, in other words.
    path = run / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SwagError, match=words):
        classifier(run)("good film")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_what_lies_in_the_place_of_a_tokenizers_file_and_is_no_file_is_refused(run, name):
    # Red for: the base model's tokenizer, silently, where the adapter's is a pipe or a broken link.
    for make in (lambda: os.mkfifo(run / name), lambda: (run / name).symlink_to("/gone")):
        (run / name).unlink()
        make()
        with pytest.raises(SwagError, match=f"{name}'"):
            classifier(run)


def test_a_tokenizer_of_another_model_is_refused_by_its_tokens(run):
    # Red for: an IndexError of torch, which on a GPU ends the process.
    path = run / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["model"]["vocab"]["good"] = 10**6
    path.write_text(json.dumps(settings))
    with pytest.raises(SwagError, match="the token 1000000, and the model has"):
        classifier(run)("good film")
