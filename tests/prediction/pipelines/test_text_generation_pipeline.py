"""The pipeline "swag-text-generation": transformers' conventions, scores of given and generated texts, and a Trainer's run over the Hub."""

import json
import os
import subprocess
import sys

import pytest
import torch
from choices import VOCABULARY, choice_tokenizer, language_model, save_base
from generation_models import language_posterior, mean_model
from huggingface_hub import HfApi
from transformers import (
    DataCollatorForLanguageModeling,
    GenerationConfig,
    MaxTimeCriteria,
    StoppingCriteriaList,
    Trainer,
    TrainingArguments,
    pipeline,
)

from swag_trainer import PosteriorNotFoundError, SwagCallback, SwagError, TextGenerator, load_posterior

TASK = "swag-text-generation"
PROMPTS = ["the film was", "a great plot but the cast was", "good"]
CHAT = [{"role": "user", "content": "the film was good"}]
ASK = """
import json, sys
import swag_trainer
from transformers import pipeline
generate = pipeline("swag-text-generation", model=sys.argv[1], seed=0, device="cpu")
made = generate(json.loads(sys.argv[2]), max_new_tokens=5, do_sample=False, return_tokens=True)
print(json.dumps([made, generate.score("the film was", "very good")]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return *language_posterior("llama", tmp_path_factory.mktemp("lm")), choice_tokenizer(chat=True)


def generator(run, **arguments):
    model, posterior, tokenizer = run
    return pipeline(TASK, **{"model": model, "posterior": posterior, "tokenizer": tokenizer, "device": "cpu", **arguments})


def without_scores(output):
    """What transformers' pipeline returns of it."""
    if isinstance(output, dict):
        return {name: value for name, value in output.items() if name in ("generated_text", "generated_token_ids")}
    return [without_scores(part) for part in output]


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (PROMPTS[0], {"do_sample": False}),
        (PROMPTS, {"do_sample": False, "batch_size": 3}),
        (PROMPTS, {"return_full_text": False, "num_return_sequences": 2, "batch_size": 2}),
        (PROMPTS[0], {"top_k": 5, "top_p": 0.9, "temperature": 1.5}),
        (PROMPTS[0], {"return_tensors": True}),
        (PROMPTS[0], {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(0.0)])}),
        (PROMPTS[1], {"handle_long_generation": "hole", "prefix": "a bad"}),
        (PROMPTS[0], {"generation_config": GenerationConfig(max_new_tokens=3, do_sample=False)}),
        (CHAT, {"do_sample": False}),
        ([CHAT, [*CHAT, {"role": "assistant", "content": "but"}]], {}),
        ("", {"do_sample": False}),
    ],
)
def test_at_scale_0_it_answers_as_transformers_pipeline_with_the_mean(run, inputs, options):
    # Red for: an argument that goes to the draws or to the tokenizer, a default of the pipeline that is left out, another order of texts.
    model, posterior, _ = run
    generate = generator(run, scale=0)
    plain = pipeline("text-generation", model=mean_model(model, posterior), tokenizer=choice_tokenizer(chat=True), device="cpu")
    plain.tokenizer.pad_token_id = 0
    if "generation_config" not in options:
        options = {"max_new_tokens": 6, **options}
    torch.manual_seed(3)
    expected = plain(inputs, **options)
    torch.manual_seed(3)
    found = generate(inputs, **options)
    assert without_scores(found) == expected
    one = found[0] if isinstance(found[0], dict) else found[0][0]
    assert one["mutual_information"] == 0 and one["entropy"] == one["aleatoric"] > 0 > one["log_probability"]


def test_generated_texts_have_the_scores_that_the_same_text_has_when_given(run):
    # Red for: scores of another sequence of the batch, of the padding behind a text's end, or of the distribution behind temperature.
    generate = generator(run, num_samples=3, seed=0)
    torch.manual_seed(0)
    options = {"max_new_tokens": 8, "num_return_sequences": 2, "eos_token_id": [0, 9, 13, 20, 25, 30], "pad_token_id": 1}
    made = generate(PROMPTS, return_full_text=False, batch_size=3, return_tokens=True, **options)
    lengths = set()
    for prompt, texts in zip(PROMPTS, made, strict=True):
        for text in texts:
            lengths.add(text["num_tokens"])
            words = [VOCABULARY.index(token["token"]) for token in text["tokens"]]
            head = generate.tokenizer(prompt)["input_ids"]
            given = TextGenerator(run[0], run[1], num_samples=3, seed=0).score([head], [words])[0]
            assert {name: text[name] for name in given.summary()} == pytest.approx(given.summary(), abs=1e-4)
            assert [token["log_probability"] for token in text["tokens"]] == pytest.approx(given.log_probabilities, abs=1e-4)
            assert text["mutual_information"] > 0 and text["num_tokens"] == len(words)
    assert len(lengths) > 1  # some were finished earlier


def test_functions_of_the_user_score_every_text_of_a_prompt(run):
    # Red for: a function that gets the padding, the texts of another prompt, or not the scored one first.
    calls = []

    def spread(texts, log_probabilities):
        calls.append((texts, log_probabilities.shape))
        return log_probabilities.sum(axis=1).std()

    generate = generator(run, num_samples=4, scores={"spread": spread})
    made = generate(PROMPTS[0], max_new_tokens=4, num_return_sequences=3, return_full_text=False, return_draws=True)
    for place, text in enumerate(made):
        texts, shape = calls[place]
        assert texts[0] == text["generated_text"] and len(texts) == 3 and shape == (4, text["num_tokens"])
        assert text["spread"] > 0 and len(text["draw_log_probabilities"]) == 4
    assert generate.score(PROMPTS[0], "good", scores={"count": lambda texts, _: len(texts)})["count"] == 1


def test_given_continuations_are_scored_one_by_one_in_batches_and_behind_a_chat(run):
    # Red for: a beginning of the sequence twice behind a chat template, or a list that is scored in another order.
    generate = generator(run, num_samples=3)
    texts = ["very good", "bad", "not so great"]
    one_by_one = [generate.score(prompt, text, return_tokens=True) for prompt, text in zip(PROMPTS, texts, strict=True)]
    for each, together in zip(one_by_one, generate.score(PROMPTS, texts, batch_size=3, return_tokens=True), strict=True):
        assert together["continuation"] == each["continuation"]
        for name in ("log_probability", "entropy", "aleatoric", "mutual_information"):
            assert together[name] == pytest.approx(each[name], abs=1e-4)
    assert [token["token"] for token in one_by_one[2]["tokens"]] == ["not", "so", "great"]
    tokenizer = choice_tokenizer()
    prompt = tokenizer("<start> the film was good <end>")["input_ids"]
    by_hand = TextGenerator(run[0], run[1], num_samples=3).score([prompt], [tokenizer("bad")["input_ids"]])[0]
    assert generate.score(CHAT, "bad")["log_probability"] == pytest.approx(by_hand.log_probability, abs=1e-4)
    wide = generate.score(PROMPTS[0], "bad", scale=4.0)
    assert wide["mutual_information"] > generate.score(PROMPTS[0], "bad")["mutual_information"]


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ([*CHAT, {"role": "assistant", "content": "but"}], {}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "slow"}}]}),
        (CHAT, {"documents": [{"title": "a", "text": "dull"}]}),
        (PROMPTS[0], {"prefix": "a bad "}),
    ],
)
@pytest.mark.parametrize("place", ["in the call", "in the constructor"])
def test_a_text_is_scored_behind_the_prompt_that_it_was_generated_behind(prompt, options, place, run):
    # Red for: tools, documents or a prefix that only a call uses, an assistant's message that is ended before it is scored on.
    tokenizer = choice_tokenizer(chat=True)
    tokenizer.chat_template = (
        "{% for each in documents or [] %}{{ each['text'] }} {% endfor %}{% for each in tools or [] %}{{ each['function']['name'] }} "
        "{% endfor %}{% for each in messages %}<start> {{ each['content'] }}{% if not loop.last or add_generation_prompt %} <end> "
        "{% endif %}{% endfor %}{% if add_generation_prompt %}the{% endif %}"
    )
    own, asked = ({}, options) if place == "in the call" else (options, {})
    generate = generator((*run[:2], tokenizer), num_samples=3, **own)
    made = generate(prompt, max_new_tokens=3, do_sample=False, return_tokens=True, **asked)[0]
    text = " ".join(token["token"] for token in made["tokens"])
    found, bare = generate.score(prompt, text, **asked), generator((*run[:2], tokenizer), num_samples=3).score(CHAT, text)
    assert {name: found[name] for name in ("log_probability", "entropy", "num_tokens")} == pytest.approx(
        {name: made[name] for name in ("log_probability", "entropy", "num_tokens")}, abs=1e-4
    )
    assert abs(found["log_probability"] - bare["log_probability"]) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 2}, "num_beams=2 is for beam search"),
        ({"assistant_model": "user/small"}, "assistant_model='user/small' is for assisted decoding"),
        ({"max_new_token": 3}, "knows no argument 'max_new_token'.*Did you mean 'max_new_tokens'"),
        ({"text_pair": "a"}, "knows no argument 'text_pair'"),
        ({"risk": 0.1}, "risk=... is for predictions of classes"),
        ({"prediction_set": 0.9}, "prediction_set=... is for predictions of classes"),
        ({"method": "linearized"}, "method=... is for predictions of classes"),
        ({"scores": [len]}, "must be functions by name"),
        ({"scores": {"entropy": len}}, "has the name of what texts have already"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_prompt_is_read(run, arguments, message):
    # Red for: an option that is ignored, an assistant that is downloaded first, a misspelling that the tokenizer swallows.
    with pytest.raises(SwagError, match=message):
        generator(run, **arguments)
    with pytest.raises(SwagError, match=message):
        generator(run)(PROMPTS[0], **arguments)


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ messages.__class__.__mro__ }}"]
)
def test_a_chat_template_that_fails_is_one_error_of_ours(template, run):
    # Red for: errors of jinja2, or of any expression, from a file of the tokenizer.
    tokenizer = choice_tokenizer(chat=True)
    tokenizer.chat_template = template
    generate = generator((*run[:2], tokenizer))
    for call in (lambda: generate(CHAT, max_new_tokens=1), lambda: generate.score(CHAT, "good")):
        with pytest.raises(SwagError, match="chat template cannot be used"):
            call()


def test_prompts_models_and_posteriors_of_another_kind_are_refused(run):
    # Red for: a KeyError of the tokenizer, the random head of another task; the user's tokenizer changed to pad on the left.
    tokenizer = choice_tokenizer()
    generate = generator((*run[:2], tokenizer))
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("right", None)
    assert generate([]) == []
    for call, message in (
        (lambda: generate(CHAT), "tokenizer with a chat template"),
        (lambda: generate.score(CHAT, "a"), "tokenizer with a chat template"),
        (lambda: generate.score("the film", 3), "a prompt and a text, or a list of each, got int"),
        (lambda: generate.score(["the film"], "was"), "A list is a chat of messages"),
        (lambda: generate.score(["the film"], [3]), "A continuation is a text, got int"),
        (lambda: generate([3]), "takes a text, or a chat"),
        (lambda: generate.score(["the film"], ["was", "a"]), "1 prompts and 2 continuations"),
        (lambda: generate.score("the film", "a", max_new_tokens=3), r"score\(\) takes .*, got 'max_new_tokens'"),
        (lambda: generate.score("the film", ""), "each with a token at least"),
        (lambda: generate.score("the film", "a", batch_size=0), "batch_size must be a whole number"),
    ):
        with pytest.raises(SwagError, match=message):
            call()
    with pytest.raises(PosteriorNotFoundError):
        generator((run[0], None, run[2]))
    with pytest.raises(SwagError, match="is for the task 'swag-text-generation'"):
        pipeline("swag-text-classification", model=run[0], posterior=run[1], tokenizer=run[2], device="cpu")


@pytest.fixture(scope="module")
def published(hub, texts, tmp_path_factory):
    """What the pipeline of a plain Trainer's run gives where it was trained; its posterior is on the Hub."""
    folder = tmp_path_factory.mktemp("sft")
    HfApi().create_repo("user/tiny-lm", exist_ok=True)
    HfApi().upload_folder(repo_id="user/tiny-lm", folder_path=save_base("llama", folder / "base"))
    swag, tokenizer = SwagCallback(rank=4), choice_tokenizer()
    tokenizer.pad_token_id = 1
    quiet = {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False, "save_strategy": "no", "seed": 0}
    trainer = Trainer(
        model=language_model("llama", "user/tiny-lm"),
        args=TrainingArguments(str(folder / "run"), max_steps=12, learning_rate=2e-2, **quiet),
        train_dataset=[tokenizer(text) for text in texts],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=[swag],
    )
    trainer.train()
    swag.posterior.push_to_hub("user/tiny-sft")
    tokenizer.push_to_hub("user/tiny-sft")
    here = generator((trainer.model.eval(), swag.posterior.stored_as("bfloat16"), tokenizer), seed=0)
    made = here(PROMPTS, max_new_tokens=5, do_sample=False, return_tokens=True)
    return here, json.loads(json.dumps([made, here.score("the film was", "very good")]))


def test_a_trainer_s_run_is_generated_from_by_the_name_of_its_repository(published, tmp_path):
    # Red for: the task lost on the way, a base of random weights, another padding side or tokenizer.
    here, (made, scored) = published
    there = pipeline(TASK, model="user/tiny-sft", seed=0, device="cpu")
    assert json.loads(json.dumps(there(PROMPTS, max_new_tokens=5, do_sample=False, return_tokens=True))) == made
    here.save_pretrained(tmp_path / "saved")
    assert load_posterior(tmp_path / "saved").record.task == TASK
    assert pipeline(TASK, model=str(tmp_path / "saved"), seed=0, device="cpu").score("the film was", "very good") == scored


@pytest.mark.slow
def test_a_new_process_generates_what_the_training_process_generates_bit_for_bit(published, tmp_path):
    # Red for: another path of prediction; a task that is known only where something else imported it.
    result = subprocess.run(
        [sys.executable, "-c", ASK, "user/tiny-sft", json.dumps(PROMPTS)],
        env={**os.environ, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == published[1]
