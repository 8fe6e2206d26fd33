"""The pipeline "swag-multiple-choice": from a Trainer over the Hub to a process that knows nothing but the repository's name."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from choices import choice_tokenizer, language_model, questions, save_base
from huggingface_hub import HfApi
from lively import lively
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, pipeline

from swag_trainer import (
    ChoiceCollator,
    ChoiceSettings,
    MonteCarloPredictor,
    MultipleChoiceMixin,
    SwagCallback,
    SwagError,
    SwagMultipleChoicePipeline,
    load_posterior,
    tune,
)
from swag_trainer.prediction.loading import AutoSwagModelForMultipleChoice
from swag_trainer.tasks.choice_settings import PROMPTS
from swag_trainer.tasks.question_encoder import LETTER, QuestionEncoder
from swag_trainer.tasks.questions import Question

TASK = "swag-multiple-choice"
ANSWERS = ChoiceSettings(scoring="answers")
ASK = """
import json, sys
import swag_trainer
from transformers import pipeline
choose = pipeline("swag-multiple-choice", model=sys.argv[1], seed=0, device="cpu")
print(json.dumps([choose(row, top_k=None) for row in json.loads(sys.argv[2])]))
"""


class ChoiceTrainer(MultipleChoiceMixin, Trainer):
    pass


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """A run on a base of the Hub, scored by answers; its posterior is pushed as the Trainer pushes it."""
    folder = tmp_path_factory.mktemp("choice")
    base = save_base("llama", folder / "base")
    HfApi().create_repo("user/tiny-llama", exist_ok=True)
    HfApi().upload_folder(repo_id="user/tiny-llama", folder_path=base)
    swag, tokenizer = SwagCallback(rank=4), choice_tokenizer()
    quiet = {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False, "save_strategy": "no", "seed": 0}
    hub_arguments = {"push_to_hub": True, "hub_model_id": "user/tiny-choice", "hub_token": "hf_test"}
    arguments = {"max_steps": 16, "per_device_train_batch_size": 4, "learning_rate": 2e-2}
    trainer = ChoiceTrainer(
        model=language_model("llama", "user/tiny-llama"),
        args=TrainingArguments(output_dir=str(folder / "run"), **quiet, **hub_arguments, **arguments),
        train_dataset=questions(),
        processing_class=tokenizer,
        choice_settings=ANSWERS,
        callbacks=[swag],
    )
    trainer.train()
    trainer.push_to_hub()
    return trainer.model.eval(), swag.posterior, tokenizer


def chooser(run, **arguments):
    model, posterior, tokenizer = run
    return pipeline(
        TASK, **{"model": model, "posterior": lively(posterior), "tokenizer": tokenizer, "device": "cpu", **arguments}
    )


@pytest.mark.slow
def test_a_new_process_gives_the_training_process_predictions_bit_for_bit(run, tmp_path):
    # Red for: the scoring or the prompt lost on the way, a base of random weights, another path of prediction.
    model, posterior, tokenizer = run
    here = SwagMultipleChoicePipeline(model=model, posterior=posterior.stored_as("bfloat16"), tokenizer=tokenizer, device="cpu")
    expected = json.loads(json.dumps([here(row, top_k=None, seed=0) for row in questions(6)]))
    result = subprocess.run(
        [sys.executable, "-c", ASK, "user/tiny-choice", json.dumps(questions(6))],
        env={**os.environ, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == expected
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("user/tiny-llama"), "user/tiny-choice")
    assert type(plain).__name__ == "PeftModelForCausalLM"  # the mean beside the posterior is ordinary PEFT


def test_predictions_are_the_predictors_ranked_and_named(run):
    # Red for: choices of another question, a missing choice in the ranking, a top_k of the constructor that a call
    # resets, a batch that is answered in another order.
    choose, rows = chooser(run), questions(6)
    batch = ChoiceCollator(run[2], ANSWERS)(rows)
    averaged = MonteCarloPredictor(run[0], lively(run[1]), progress=False).predict(batch)
    for batch_size in (1, 4):
        for place, (row, ranking) in enumerate(zip(rows, choose(rows, top_k=None, batch_size=batch_size), strict=True)):
            order = (-averaged.probabilities[place]).argsort(kind="stable")[: len(row["choices"])]
            assert [one["choice"] for one in ranking] == [row["choices"][index] for index in order]
            assert [one["label"] for one in ranking] == ["ABCDE"[index] for index in order]
            np.testing.assert_allclose([one["score"] for one in ranking], averaged.probabilities[place][order], atol=1e-6)
            assert ranking[0]["entropy"] == pytest.approx(averaged.entropy[place], abs=1e-6)
            assert sum(one["score"] for one in ranking) == pytest.approx(1)
    assert choose(rows[0]) == choose(rows[0], top_k=None)[0]
    assert len(choose(rows[0], top_k=2)) == 2 and choose([]) == []
    assert len(chooser(run, top_k=2)(rows[0])) == 2
    as_on_the_hub = {"question_stem": rows[0]["question"], "choices": {"text": rows[0]["choices"], "label": ["1", "2", "3"]}}
    assert choose(as_on_the_hub) == choose(rows[0])


def test_questions_without_an_answer_are_predicted_and_other_losses_are_refused(run, tmp_path):
    # Red for: logits of the vocabulary for questions without an answer, a loss that is asked for and not used.
    model, _, tokenizer = run

    def trainer(**arguments):
        args = TrainingArguments(output_dir=str(tmp_path), report_to=[], disable_tqdm=True, **arguments)
        return ChoiceTrainer(model=model, args=args, processing_class=tokenizer, choice_settings=ANSWERS)

    answered = questions(6)
    asked = [{name: value for name, value in row.items() if name != "answer"} for row in answered]
    found, expected = (trainer().predict(rows).predictions for rows in (asked, answered))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(SwagError, match="5 of 6 questions of a batch have an answer"):
        trainer().evaluate([asked[0], *answered[1:]])
    with pytest.raises(SwagError, match="does not use label_smoothing_factor"):
        trainer(label_smoothing_factor=0.1)


@pytest.mark.parametrize(
    "prompt", ["{question:d} {choices}", "{question:{width}} {choices}", "{question!r} {choices}", "{choices}"]
)
def test_a_prompt_has_its_places_as_they_are(prompt):
    # Red for: a format that fails at the first question, or one whose width a file chooses.
    with pytest.raises(SwagError, match="A prompt for letters has"):
        ChoiceSettings(prompt=prompt)


def test_a_chosen_scoring_replaces_the_recorded_one(run):
    # Red for: letters scored with the prompt for answers, which lists no choices.
    choose = chooser(run, scoring="letters")
    assert choose.settings.prompt == PROMPTS["letters", False]
    assert choose.prompt(questions(1)[0]).endswith("Answer:") and "\nC. " in choose.prompt(questions(1)[0])
    task = choose.predicted_task()
    batch = ChoiceCollator(run[2], ChoiceSettings())(questions(2))
    averaged = MonteCarloPredictor(run[0], lively(run[1]), task=task).predict(batch)
    assert choose(questions(2))[1]["score"] == pytest.approx(averaged.probabilities[1].max(), abs=1e-6)
    assert chooser(run, chat=False, prompt="{question}").prompt({"question": "a", "choices": ["b", "c"]}) == "a"


def test_a_posterior_without_a_task_is_asked_by_letters(run):
    # Red for: a plain Trainer's or an SFTTrainer's run refused, which notes no task.
    posterior = replace(run[1], record=replace(run[1].record, task=None, task_settings={}))
    assert chooser((run[0], posterior, run[2])).settings.scoring == "letters"
    generation = replace(run[1], record=replace(run[1].record, task="swag-text-generation", task_settings={}))
    assert chooser((run[0], generation, run[2])).settings.scoring == "letters"


def test_tuning_makes_sets_of_choices_of_the_question(run, tmp_path):
    # Red for: the number of labels in a language model's config taken for that of choices; a set with a choice that there is not; a
    # temperature and sets of one scoring used for another.
    encoder = QuestionEncoder(run[2], ANSWERS)
    tuned = tune(run[1], run[0], [encoder(row) for row in questions(60)], levels=(0.8,), risks=(), progress=False)
    assert tuned.tuning.num_examples == 60 and tuned.features is None
    tuned.save_pretrained(tmp_path / "tuned")
    run[2].save_pretrained(tmp_path / "tuned")
    choose = pipeline(TASK, model=str(tmp_path / "tuned"), device="cpu", prediction_set=0.8)
    for row in questions(9):
        found = choose(row)["prediction_set"]
        assert set(found) <= set("ABCDE"[: len(row["choices"])]) and found
    assert choose(questions(1)[0], abstain_below=0.99)["label"] is None
    same = chooser((run[0], tuned, run[2]), scoring="answers", chat=None, max_choices=4, prediction_set=0.8)
    assert same.options.resolved(same.posterior).temperature == tuned.tuning.temperature
    for changes in ({"scoring": "letters"}, {"prompt": "{question}"}, {"inverse_temperature": 3.0}):
        with pytest.warns(UserWarning, match="The posterior was tuned with .* are left out"):
            other = chooser((run[0], tuned, run[2]), **changes)
        assert other.options.resolved(other.posterior).temperature == 1
        with pytest.raises(SwagError, match="this posterior was not tuned"):
            other(questions(1)[0], prediction_set=0.8)
    assert load_posterior(tmp_path / "tuned").record.task_settings["scoring"] == "answers"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scoring": "letter"}, "scoring must be one of"),
        ({"prompt": "Which?"}, "{question}"),
        ({"prompt": "{question} {"}, "not a format string"),
        ({"prompt": "{question} {other}"}, "{question}"),
        ({"chat": True}, "no.*chat template|has none"),
        ({"inverse_temperature": 0.0}, "inverse_temperature"),
        ({"scoring": "letters", "inverse_temperature": 2.0}, "scoring=\"answers\""),
        ({"max_choices": 1}, "max_choices must be from 2"),
        ({"truncation": True}, "no argument 'truncation'"),
        ({"num_sample": 3}, "no argument 'num_sample'"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_k": 1.5}, "top_k must be"),
        ({"prediction_set": 0.8}, "tune"),
        ({"ood": 0.9}, "no OOD score"),
        ({"scoring": "letters", "max_choices": 7}, "one token of its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_a_question_is_read(run, arguments, message):
    # Red for: an option that is ignored, or found out in the middle of a data set.
    with pytest.raises(SwagError, match=message):
        chooser(run, **arguments)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a text", "takes questions"),
        ({"question": "a"}, "A question is"),
        ({"question": "a", "choices": ["b"]}, "1 choices"),
        ({"question": "a", "choices": ["b", " "]}, "a choice without a token"),
        ({"question": "a", "choices": list("bcdefg")}, "6 choices; from 2 to max_choices=5"),
        ({"question": "a", "choices": ["b", ""]}, "without a token"),
        ({"question": "a", "choices": ["b", "c"], "answer": 2}, "answer 2"),
    ],
)
def test_what_is_no_question_is_refused(run, row, message):
    # Red for: an empty choice that wins, as the mean over no tokens is 0; a sixth choice that is left out in silence.
    with pytest.raises(SwagError, match=message):
        chooser(run)(row)


def test_letters_are_resolved_with_and_without_a_leading_space():
    # Red for: " A" looked up as "A", or two pieces of a letter of which the first one is scored.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def byte_level(merges):
        letters = sorted({*pre_tokenizers.ByteLevel.alphabet()})
        vocabulary = {token: place for place, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
        model = Tokenizer(models.BPE(vocabulary, list(merges)))
        model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>")

    spaced = byte_level([("Ġ", letter) for letter in "ABCDE"])
    row = {"question": "q", "choices": ["one", "two", "three"]}
    expected = spaced.convert_tokens_to_ids(["ĠA", "ĠB", "ĠC"])
    assert QuestionEncoder(spaced)(row)[LETTER] == [*expected, -1, -1]
    behind_a_line = QuestionEncoder(spaced, ChoiceSettings(prompt="{question}\n{choices}\n"))
    assert behind_a_line(row)[LETTER] == [*spaced.convert_tokens_to_ids(["A", "B", "C"]), -1, -1]
    two_pieces = byte_level([])
    assert QuestionEncoder(two_pieces)(row)[LETTER] == [*two_pieces.convert_tokens_to_ids(["A", "B", "C"]), -1, -1]
    with pytest.raises(SwagError, match="letters A to E must be one token of its own"):
        QuestionEncoder(choice_tokenizer(without="E"))


def test_prompts_go_through_the_chat_template_where_there_is_one():
    # Red for: a beginning of the sequence twice, a template that is left out, or one that answers are separated from by a space.
    row = {"question": "good film ?", "choices": ["a", "b"], "answer": 1}
    encoder = QuestionEncoder(choice_tokenizer(chat=True), ANSWERS)
    assert encoder.prompt(row) == "<start> good film ? <end> "
    tokenizer = choice_tokenizer()
    assert encoder(row)["input_ids"][:5] == tokenizer("<start> good film ? <end>")["input_ids"]
    assert QuestionEncoder(choice_tokenizer(chat=True), replace(ANSWERS, chat=False)).prompt(row).startswith("Question: good")
    assert encoder(row)["labels"] == 1
    hub_row = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
    assert Question.from_row(hub_row, max_choices=4).answer == 1
    assert Question.from_row({"question": "q", "choices": ["a", "b"], "answerKey": "B", "label": 0}, max_choices=4).answer == 1
    assert Question.from_row({**hub_row, "answerKey": ""}, max_choices=4).answer is None
    for changes in ({"answerKey": "C"}, {"choices": {"text": ["a", "b"], "label": ["A", "B", "C"]}}, {"answerKey": 1}):
        with pytest.raises(SwagError, match="has answerKey="):  # the right choice would be one that there is not
            Question.from_row({**hub_row, **changes}, max_choices=4)


def test_a_prompt_is_not_kept_where_it_does_not_fit_the_other_settings():
    # Red for: letters asked for behind "Answer with the letter of the right choice.", without the template that this is for.
    recorded = ChoiceSettings().resolved(choice_tokenizer(chat=True))
    assert recorded.prompt == PROMPTS["letters", True]
    assert recorded.changed({"chat": False}).resolved(choice_tokenizer()).prompt == PROMPTS["letters", False]
    assert recorded.changed({"max_choices": 3}) == replace(recorded, max_choices=3)
    own = replace(recorded, prompt="{question} {choices}")
    assert own.changed({"chat": False}).prompt == own.prompt and own.changed({"scoring": "answers"}).prompt is None
    for wrong in ({"prompt": 3}, {"inverse_temperature": "2"}, {"max_choices": 4.0}, {"chat": 1}, {"scoring": None}):
        with pytest.raises(SwagError, match="no setting of multiple choice"):
            recorded.changed(wrong)


def test_a_prompt_that_is_too_long_loses_its_beginning_and_is_counted(run, caplog):
    # Red for: the end of the prompt cut off, behind which the answer is scored; a cut that is not counted.
    tokenizer = choice_tokenizer()
    tokenizer.model_max_length = 12
    choose = chooser((run[0], run[1], tokenizer))
    row = {"question": " ".join(["good"] * 30), "choices": ["bad film", "a"]}
    with caplog.at_level(logging.WARNING):
        choose([row, row])
    assert choose.num_truncated == 2 and "truncated" in caplog.text
    ids = choose.preprocess(row)["input_ids"][0].tolist()
    assert len(ids) == 13 and tokenizer.convert_ids_to_tokens(ids)[8:] == ["Answer", ":", "bad", "film", "a"]


def test_the_pipeline_of_another_kind_of_model_is_refused(run):
    # Red for: a classifier's head looked for in a language model, and reported as missing.
    with pytest.raises(SwagError, match="is for the task 'swag-multiple-choice'"):
        pipeline("swag-text-classification", model="user/tiny-choice", device="cpu")


def test_the_model_loads_by_hand_too(run):
    # Red for: a head of another class around the base.
    model = AutoSwagModelForMultipleChoice.from_pretrained("user/tiny-choice")
    here = chooser((model, run[1].stored_as("bfloat16"), run[2]), posterior=None)
    assert here(questions(1)[0], seed=0) == pipeline(TASK, model="user/tiny-choice", device="cpu")(questions(1)[0], seed=0)
