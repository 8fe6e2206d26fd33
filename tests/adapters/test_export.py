"""Exported adapters: each is loaded by plain PEFT, their average is the pipeline's, and a server's replies are averaged alike."""

import json
import re
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer

import numpy as np
import pytest
import torch
from choices import choice_tokenizer, questions, save_base
from lively import lively
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline

from swag_trainer import ChoiceSettings, MonteCarloPredictor, PosteriorMixture, SwagError, SwagPosterior, export_adapters
from swag_trainer.adapters.export import INDEX_FILE, AdapterIndex
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.cli.main import main
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.swag import SwagRecord
from swag_trainer.posterior.tuning import Candidate, Tuning
from swag_trainer.serving import ServedPosterior

ANSWERS = ["A", "B", "C"]
QUESTIONS = [row for row in questions() if len(row["choices"]) == 3][:4]
TUNED = Tuning(1.6, "me/texts", 60, 0, 5, 0, 0.5, candidates=[Candidate("mean", 1.0, False, 1.6, 0.5)])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base("llama", tmp_path_factory.mktemp("export") / "base")


def adapted(base, **settings):
    """A tiny Llama with LoRA of other ranks and alphas in some layers, and weights that are not zero."""
    plain = AutoModelForCausalLM.from_pretrained(base)
    settings = {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}} | settings
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **settings)
    model = get_peft_model(plain, lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model


def posterior_of(model):
    saved, generator = AdapterWeights(model).saved(), torch.Generator().manual_seed(0)
    layout = WeightLayout.of(saved.tensors)
    spread = torch.rand(layout.size, generator=generator) / 9, torch.randn(3, layout.size, generator=generator) / 5
    settings = ChoiceSettings(scoring="letters", max_choices=3).as_record()
    record = PosteriorRecord(
        base_model=saved.base_model, task="swag-multiple-choice", task_settings=settings, versions={"torch": "2"}
    )
    steps = {"steps": [2, 4, 6, 8], "learning_rates": [1e-2] * 4, "deviation_norms": [1.0] * 4}
    gaussian = LowRankGaussian(layout.flatten(saved.tensors), *spread)
    return SwagPosterior(layout, gaussian, record, SwagRecord(4, "Every(steps=2)", 2, 8, **steps), saved)


@pytest.fixture(scope="module")
def model(base):
    return adapted(base)


@pytest.fixture(scope="module")
def posterior(model):
    return posterior_of(model).with_tuning(TUNED, scale=1.0)


@pytest.fixture(scope="module")
def exported(posterior, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    export_adapters(posterior, folder, num_samples=5, seed=3)
    return folder


@pytest.fixture(scope="module")
def served(base, exported):
    """All adapters in one plain PEFT model, as a server has them."""
    index = AdapterIndex.read(exported)
    first, *others = [index.mean, *index.draws]
    plain = AutoModelForCausalLM.from_pretrained(base)
    loaded = PeftModel.from_pretrained(plain, exported / first, adapter_name=first)
    for name in others:
        loaded.load_adapter(str(exported / name), adapter_name=name)
    return loaded.eval()


@pytest.fixture(scope="module")
def pipelines(model, posterior):
    return pipeline(
        "swag-multiple-choice",
        model=model,
        posterior=posterior,
        tokenizer=choice_tokenizer(),
        device="cpu",
        num_samples=5,
        seed=3,
    )


def expected(choose, **settings):
    return [
        [each["score"] for each in sorted(choose(row, top_k=None, **settings), key=lambda each: each["label"])]
        for row in QUESTIONS
    ]


def letters_under(served, name, prompt):
    tokenizer = choice_tokenizer()
    served.set_adapter(name)
    with torch.no_grad():
        logits = served(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    return logits.log_softmax(-1), tokenizer


def test_the_defaults_are_the_draws_that_were_tuned_and_the_mean_is_the_mean(model, tmp_path):
    # Red for: matched draws in the place of independent ones, as many as there always are; the last snapshot under the name of the mean.
    chosen = Candidate("last", 1.0, False, 1.6, 0.5)
    tuning = replace(TUNED, center="last", num_samples=5, seed=3, design="iid", candidates=[chosen])
    posterior = posterior_of(model).with_tuning(tuning, scale=1.0)
    index = export_adapters(posterior, tmp_path)
    assert len(index.draws) == 5 and index.seed == 3
    drawn = posterior.draw(5, seed=3, design="iid").vectors + (posterior.center("last") - posterior.mean_vector())
    for name, vector in {**dict(zip(index.draws, drawn, strict=True)), "mean": posterior.mean_vector()}.items():
        saved, expected = SavedAdapter.read(tmp_path / name).tensors, posterior.layout.unflatten(vector)
        key = next(key for key in expected if key.endswith("layers.1.self_attn.q_proj.lora_A.weight"))
        assert torch.equal(saved[key], expected[key]), name


def test_plain_peft_loads_every_draw_and_their_average_is_that_of_the_pipeline(exported, served, pipelines):
    # Red for: a module's own alpha or rank lost, draws of another seed, a temperature that is left out, the mean among the draws.
    index = AdapterIndex.read(exported)
    assert index.rank == 4 and index.mean == "mean" and index.temperature == 1.6 and len(index.draws) == 5
    config = json.loads((exported / "draw-0" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {}, {})
    for name, scores, weights in (
        ("draws", expected(pipelines), dict(zip(index.draws, index.weights, strict=True))),
        ("mean", expected(pipelines, scale=0.0, temperature=1.6), {"mean": 1.0}),
    ):
        for row, theirs in zip(QUESTIONS, scores, strict=True):
            ours = np.zeros(3)
            for adapter, weight in weights.items():
                logprobs, tokenizer = letters_under(served, adapter, pipelines.prompt(row))
                letters = logprobs[tokenizer.convert_tokens_to_ids(ANSWERS)]
                ours += weight * (letters / index.temperature).softmax(-1).numpy()
            np.testing.assert_allclose(ours, theirs, atol=2e-6, err_msg=name)


@contextmanager
def standing_in_for_a_server(served):
    """A server on the loopback interface that answers as vLLM does, with the adapter that a request names."""
    lock, seen = threading.Lock(), []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), request))
            if request["model"] not in served.peft_config:
                return self.reply(404, {"error": {"message": f"The model {request['model']} does not exist."}})
            chat = self.path.endswith("/chat/completions")
            prompt = request["messages"][0]["content"] if chat else request["prompt"]
            with lock:
                logprobs, tokenizer = letters_under(served, request["model"], prompt)
            top = logprobs.topk(min(request["top_logprobs" if chat else "logprobs"], len(logprobs)))
            found = dict(zip(tokenizer.convert_ids_to_tokens(top.indices.tolist()), top.values.tolist(), strict=True))
            content = [{"top_logprobs": [{"token": token, "logprob": value} for token, value in found.items()]}]
            self.reply(200, {"choices": [{"logprobs": {"content": content} if chat else {"top_logprobs": [found]}}]})

        def reply(self, status, document):
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
        server.shutdown()


@pytest.mark.parametrize("chat", [False, True])
def test_the_client_averages_what_a_server_answers_for_each_adapter(chat, served, exported, pipelines):
    # Red for: an adapter that is asked twice or not at all, probabilities over the whole vocabulary, replies of other prompts.
    prompts = [pipelines.prompt(row) for row in QUESTIONS]
    with standing_in_for_a_server(served) as (url, seen):
        found = ServedPosterior(url, exported, api_key="key-1", chat=chat, num_logprobs=99).predict(prompts, ANSWERS)
    np.testing.assert_allclose(found.probabilities, expected(pipelines), atol=2e-6)
    assert found.labels == ("A", "B", "C") and (found.mutual_information > 0).all()
    assert sorted(request["model"] for _, _, request in seen) == sorted(AdapterIndex.read(exported).draws * len(prompts))
    assert {(path, key) for path, key, _ in seen} == {(f"/v1/{'chat/' if chat else ''}completions", "Bearer key-1")}


def test_the_client_refuses_what_it_cannot_average(served, exported):
    # Red for: a letter outside of the likeliest tokens that counts as 0, an adapter that the server does not have, a key in an error.
    index = AdapterIndex.read(exported)
    with standing_in_for_a_server(served) as (url, _):
        for arguments, adapters, words in (
            ({"num_logprobs": 1}, index, "is not among the 1 likeliest tokens"),
            ({"num_logprobs": 99}, replace(index, draws=("gone", *index.draws[1:])), "answered 404.*Was the server started"),
        ):
            with pytest.raises(SwagError, match=words) as caught:
                ServedPosterior(url, adapters, api_key="key-1", **arguments).predict(["good film"], ANSWERS)
            assert "key-1" not in str(caught.value)
    with pytest.raises(SwagError, match="URLError"):
        ServedPosterior("http://me:secret@127.0.0.1:9/v1", index).predict(["good film"], ANSWERS)
    for call in (
        lambda: ServedPosterior("file:///etc/passwd", index),
        lambda: ServedPosterior("http://x", index, num_logprobs=0),
        lambda: ServedPosterior("http://x", index).predict(["a"], ["A", "A"]),
        lambda: ServedPosterior("http://x", index).predict([], ANSWERS),
    ):
        with pytest.raises(SwagError):
            call()


def replying(status, headers, body=b"", pause=0.0):
    """A connection handler that writes what it is told, whatever was asked; with a pause a byte at a time, for ever."""

    class Handler(BaseRequestHandler):
        def handle(self):
            asked, length = b"", None
            # All of the request: a connection that is closed with bytes unread is reset, and the reply may be lost.
            while length is None or len(asked) < length:
                received = self.request.recv(2**16)
                if not received:
                    return
                asked += received
                head, end, _ = asked.partition(b"\r\n\r\n")
                if end:
                    stated = re.search(rb"(?i)content-length: *(\d+)", head)
                    length = len(head) + len(end) + (int(stated[1]) if stated else 0)
            with suppress(OSError):  # the client has hung up
                self.request.sendall(f"HTTP/1.1 {status}\r\n{headers}\r\n".encode() + body)
                while pause:
                    self.request.sendall(b" ")
                    time.sleep(pause)

    return Handler


def logprobs(number):
    return b'{"choices":[{"logprobs":{"top_logprobs":[{"A":%s,"B":-1,"C":-2}]}}]}' % number


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        *(
            (("200 OK", "", logprobs(number)), "has the log-probability")
            for number in (b"NaN", b"-Infinity", b"true", b"5", b"-1" + b"0" * 400)
        ),
        (("200 OK", "", b"[" * 200_000), "RecursionError"),
        (("200 OK", "Transfer-Encoding: chunked\r\n", b"zz\r\n"), "IncompleteRead"),
        (("what?", "A: b\r\n" * 200), "HTTPException|BadStatusLine|answered|ValueError"),
        (("500 No", "", b"", 0.2), "answered 500"),
        (("200 OK", "", b"", 0.2), "not whole after 1 seconds"),
        (("401 No", "", b"key-1 is no key"), r"answered 401: \*\*\* is no key"),
    ],
)
def test_whatever_a_server_replies_is_one_error_of_ours_in_time(reply, words, exported):
    # Red for: NaN among the probabilities, errors of http.client and json, a timeout that begins anew with every byte, a key that is repeated.
    with ThreadingTCPServer(("127.0.0.1", 0), replying(*reply)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, begun = f"http://127.0.0.1:{server.server_address[1]}/v1", time.monotonic()
        with pytest.raises(SwagError, match=words) as caught:
            ServedPosterior(url, exported, api_key="key-1", timeout=1).predict(["good film"], ANSWERS)
        server.shutdown()
    assert time.monotonic() - begun < 20 and "key-1" not in str(caught.value)


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
def test_no_redirect_takes_the_key_to_another_host(status, served, exported):
    # Red for: urllib, which sends every header along, the key too.
    with standing_in_for_a_server(served) as (url, seen):
        handler = replying(status, f"Location: {url}/completions\r\n")
        with ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            here = f"http://127.0.0.1:{server.server_address[1]}/v1"
            with pytest.raises(SwagError, match="redirects to .*, which is not followed"):
                ServedPosterior(here, exported, api_key="key-1").predict(["good film"], ANSWERS)
            server.shutdown()
    assert not seen


@pytest.mark.parametrize("url", ["http://x:port/v1", "http://[::1/v1", "http://x/a b", "http://x\x01/", "http://x:99999/"])
def test_an_address_or_a_key_that_cannot_be_sent_is_refused_at_once(url, exported):
    # Red for: errors of http.client at the first question, one of which shows the key.
    with pytest.raises(SwagError, match="address of a server"):
        ServedPosterior(url, exported)
    with pytest.raises(SwagError, match="line break") as caught:
        ServedPosterior("http://x", exported, api_key="key-1\n")
    assert "key-1" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": [10**400, 0]},
        {"draws": "ab"},
        {"draws": ["draw-0", "draw-0"]},
        {"members": ["x", "y"]},
        {"members": [-1, 0]},
        {"draws_per_block": 1.0},
        {"temperature": 10**400},
        {"temperature": 1e-320},
        {"labels": 5},
    ],
)
def test_an_index_of_other_types_is_refused(changes, exported, tmp_path):
    # Red for: errors of torch at the first question; a temperature that makes every probability NaN.
    document = json.loads((exported / INDEX_FILE).read_text())
    two = {"draws": ["a", "b"], "weights": [0.5, 0.5], "draws_per_block": 1}
    (tmp_path / INDEX_FILE).write_text(json.dumps(document | two | changes))
    with pytest.raises(SwagError, match=INDEX_FILE):
        AdapterIndex.read(tmp_path)


def test_a_classifier_and_a_mixture_are_exported_with_their_heads_and_weights(trained, base_folder, rows, tmp_path):
    # Red for: a head that stays at its mean, members that count alike, a draw that is rounded.
    trainer, swag = trained
    swag_posterior = lively(swag.posterior)
    other = replace(swag_posterior, gaussian=replace(swag_posterior.gaussian, mean=swag_posterior.gaussian.mean + 0.05))
    mixture = PosteriorMixture.of([swag_posterior, other], [0.75, 0.25])
    batch = [{name: value for name, value in row.items() if name != "labels"} for row in rows[:3]]
    for number, posterior in enumerate((swag_posterior, mixture)):
        folder = tmp_path / str(number)
        index = export_adapters(posterior, folder, num_samples=4, seed=1, with_heads=True)
        predictor = MonteCarloPredictor(trainer.model, posterior, num_samples=4, seed=1)
        ours = np.zeros((3, 3))
        plain = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
        loaded = PeftModel.from_pretrained(plain, folder / index.draws[0], adapter_name=index.draws[0])
        for name in index.draws[1:]:
            loaded.load_adapter(str(folder / name), adapter_name=name)
        for name, weight in zip(index.draws, index.weights, strict=True):
            loaded.set_adapter(name)
            loaded.eval()
            with torch.no_grad():
                logits = [loaded(**{key: torch.tensor([value]) for key, value in row.items()}).logits[0] for row in batch]
            ours += weight * torch.stack(logits).softmax(-1).numpy()
        np.testing.assert_allclose(ours, predictor.predict(batch).probabilities, atol=2e-6)
        assert (index.mean is None, index.members is not None) == (number == 1, number == 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "most servers cannot load them"),
        ({"use_dora": True}, "use_dora=True, which servers do not load"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"init_lora_weights": "pissa"}, "to_plain_lora"),
        ({"peft_type": "IA3", "rank_pattern": None, "alpha_pattern": None}, "of the kind 'IA3'"),
    ],
)
def test_what_servers_would_load_as_something_else_is_refused(changes, words, posterior, tmp_path):
    # Red for: an adapter that a server loads without its head, its magnitudes or its biases.
    kept = ("base_model_name_or_path", "peft_type", "target_modules", "task_type")
    config = posterior.adapter.config
    config = {name: config[name] for name in kept} if "peft_type" in changes else config
    odd = replace(posterior, adapter=replace(posterior.adapter, config={**config, **changes}))
    with pytest.raises(SwagError, match=words):
        export_adapters(odd, tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()


def test_other_weights_tuned_dropout_and_a_folder_in_use_are_refused(posterior, exported, tmp_path):
    # Red for: a weight that no server knows, draws without the dropout that the temperature was tuned with, draws of two exports in one folder.
    tensors = {**posterior.adapter.tensors, "base_model.model.lm_head.bias": torch.zeros(2)}
    with pytest.raises(SwagError, match=r"lm_head\.bias"):
        export_adapters(replace(posterior, adapter=replace(posterior.adapter, tensors=tensors)), tmp_path)
    heads = {"base_model.model.lm_head.weight": torch.zeros(2, 2)}
    config = {**posterior.adapter.config, "modules_to_save": ["lm_head"]}
    with pytest.raises(SwagError, match="a head alone"):
        export_adapters(replace(posterior, adapter=SavedAdapter(config, heads)), tmp_path, with_heads=True)
    with pytest.raises(SwagError, match="tuned with dropout"):
        export_adapters(posterior.with_tuning(replace(TUNED, dropout=True), scale=1.0), tmp_path)
    with pytest.raises(SwagError, match="holds exported adapters already"):
        export_adapters(posterior, exported)


def test_the_command_exports_and_prints_what_serves_the_adapters(posterior, tmp_path, capsys):
    # Red for: a command that vLLM does not take, an index that is not there, a damaged one that is taken.
    posterior.save_pretrained(tmp_path / "run", dtype="float32")
    target = tmp_path / "adapters"
    assert main(["export", str(tmp_path / "run"), "--output", str(target), "--num-samples", "2"]) == 0
    shown = capsys.readouterr().out
    assert "2 draws of SWAG, and their mean" in shown
    assert f"--max-loras 3 --max-lora-rank 4 --lora-modules mean={target}/mean draw-0={target}/draw-0" in shown
    index = AdapterIndex.read(target)
    assert index.posterior == posterior.digest and index.task == "swag-multiple-choice"
    document = json.loads((target / INDEX_FILE).read_text())
    for changes in ({"weights": [1, 1]}, {"draws": ["draw-0"]}, {"version": 2}, {"temperature": 0}, {"x": 1}):
        (target / INDEX_FILE).write_text(json.dumps({**document, **changes}))
        with pytest.raises(SwagError, match=INDEX_FILE):
            AdapterIndex.read(target)
