"""Extractive question answering: windows, and starts and ends through predictor, tuning and measurement."""

import copy

import numpy as np
import pytest
import torch
from answering import LENGTH, answering, answering_trainer, examples, save_answering
from lively import lively
from transformers import BertTokenizerFast, Trainer

from swag_trainer import MonteCarloPredictor, Sampling, SwagCallback, SwagError, SwagEvaluationMixin, tune
from swag_trainer.adapters.weights import private_copy
from swag_trainer.evaluation.measurement import measure
from swag_trainer.evaluation.methods import predict_methods
from swag_trainer.tasks import task_named
from swag_trainer.tasks.context_windows import ANSWERABLE, END, START, WindowEncoder, _without_spaces
from swag_trainer.tasks.question_answering import QuestionAnswering

TASK = QuestionAnswering()


class PosteriorTrainer(SwagEvaluationMixin, Trainer):
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answering")
    tokenizer, swag = BertTokenizerFast.from_pretrained(save_answering(folder / "base")), SwagCallback(rank=4)
    encoder = WindowEncoder(tokenizer, max_length=LENGTH, stride=8)
    rows = [row for example in examples() * 3 for row in encoder.training_rows(example)]
    trainer = answering_trainer(answering(folder / "base"), rows, tokenizer, folder / "run", callbacks=[swag])
    trainer.train()
    trainer.model.eval()
    return trainer, lively(swag.posterior), tokenizer, rows


def test_windows_cover_the_context_and_mark_the_answer(run):
    # Red for: a token that no window begins an answer at, or two; an answer that is marked in a window which cuts it off; no answer that is
    # marked at the question.
    tokenizer = run[2]
    for side, truncated in (("right", "right"), ("left", "right"), ("right", "left")):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side, tokenizer.truncation_side = side, truncated
        encoder = WindowEncoder(tokenizer, max_length=LENGTH, stride=8)
        for example in examples():
            windows, rows = encoder(example["question"], example["context"]), encoder.training_rows(example)
            begins = [window.offsets[place] for window in windows for place in window.begins]
            assert sorted(begins) == [
                tuple(pair)
                for pair in tokenizer(example["context"], add_special_tokens=False, return_offsets_mapping=True)[
                    "offset_mapping"
                ]
            ]
            marked = []
            for window, row in zip(windows, rows, strict=True):
                assert row["input_ids"][window.no_answer] == tokenizer.cls_token_id and len(row["input_ids"]) <= LENGTH
                first, last = window.offsets[row[START]], window.offsets[row[END]]
                if first is not None:
                    marked.append(example["context"][first[0] : last[1]])
                else:
                    assert row[START] == row[END] == window.no_answer
            assert set(marked) == set(example["answers"]["text"])
    with pytest.raises(SwagError, match="does not stand at character 3"):
        encoder.training_rows({**examples()[0], "answers": {"text": ["plot"], "answer_start": [3]}})
    with pytest.raises(SwagError, match='"answers" is'):
        encoder.training_rows({**examples()[0], "answers": "plot"})
    assert tokenizer.truncation_side == "left"  # it is the user's
    assert _without_spaces(0, 4, " Ada ") == (1, 4) and _without_spaces(0, 5, " Ada ") == (1, 4)
    assert _without_spaces(0, 1, " Ada ") == (0, 1)
    spaced = {**examples()[0], "answers": {"text": [" film "], "answer_start": [3]}}
    assert encoder.training_rows(spaced) == encoder.training_rows(examples()[0])


def test_starts_and_ends_have_the_probabilities_of_a_plain_loop(run):
    # Red for: draws and windows mixed up in a packed forward, starts that follow all ends, classes of a padded window, a probability for the
    # question's tokens.
    trainer, posterior, _, rows = run
    weights = private_copy(trainer.model, None, posterior.layout.keys)
    some = rows[:6]
    expected = []
    for row in some:
        draws = []
        for draw in posterior.draw(3, seed=0).vectors:
            weights.write(posterior.layout.unflatten(draw))
            with torch.no_grad():
                output = weights.model(input_ids=torch.tensor([row["input_ids"]]))
            logits = torch.stack([output.start_logits[0], output.end_logits[0]]).double()
            draws.append(logits.masked_fill(torch.tensor(row[ANSWERABLE]) == 0, -torch.inf).softmax(-1))
        expected.append(torch.stack(draws).mean(0).numpy())
    width = max(len(row["input_ids"]) for row in some)
    expected = np.concatenate([np.pad(each, [(0, 0), (0, width - each.shape[1])]) for each in expected])
    predictor = MonteCarloPredictor(trainer.model, posterior, num_samples=3, progress=False)
    averaged = predictor.predict(some)
    np.testing.assert_allclose(averaged.probabilities, expected, rtol=0, atol=1e-5)
    padded = {name: torch.zeros(len(some), width, dtype=torch.long) for name in ("input_ids", "attention_mask", ANSWERABLE)}
    for side in (slice(0, None), slice(None, None, -1)):  # padding on the right, and on the left
        for name, values in padded.items():
            values.zero_()
            for place, row in enumerate(some):
                values[place, : len(row[name])] = torch.tensor(row[name])
                if side.step:
                    values[place] = values[place].roll(width - len(row[name]))
        np.testing.assert_allclose(predictor.predict(padded).probabilities, expected, rtol=0, atol=1e-5)
    within = MonteCarloPredictor(trainer.model, posterior, num_samples=3, max_error=0.1, num_blocks=3, progress=False).predict(
        some
    )
    assert within.probabilities.shape == expected.shape
    assert predictor._logits.sampler.obstacle is None
    predictor._logits.sampler._give_up("to see the plain path")
    np.testing.assert_allclose(predictor.predict(padded).probabilities, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:On .* examples")
def test_starts_and_ends_are_tuned_and_measured(run):
    # Red for: labels in another order than the events, promises for starts and ends, which depend on each other, windows of one question
    # in several folds.
    trainer, posterior, _, rows = run
    labels = TASK.labels(rows, 2)
    assert labels.tolist() == [row[name] for row in rows for name in (START, END)]
    settings = {"name": "me/questions", "sampling": Sampling(num_samples=3), "progress": False}
    twice = [row for row in rows for _ in range(2)]
    each, pairs = (
        tune(posterior, trainer.model, twice, groups=g, **settings).tuning for g in (None, np.arange(len(twice)) // 2)
    )
    assert (each.num_examples, pairs.num_examples) == (len(twice), len(rows))
    assert pairs.candidates == each.candidates and pairs.nll != each.nll
    for groups, message in (([0], "a number for each of the"), (np.arange(len(rows)) % 2, "must follow each other")):
        with pytest.raises(SwagError, match=message):
            tune(posterior, trainer.model, rows, groups=groups, **settings)
    tuned = tune(posterior, trainer.model, rows, **settings)
    assert tuned.tuning.num_examples == len(rows) and tuned.tuning.thresholds == tuned.tuning.conformal == []
    assert tuned.tuning.temperature != 1
    methods = predict_methods(trainer.model, tuned, rows, methods=["SWAG"], progress=False)
    found = methods["SWAG"].probabilities[np.arange(len(labels)), labels]
    measured = measure(methods, labels, num_resamples=3).methods["SWAG"].metrics
    assert measured["nll"].value == pytest.approx(-np.log(np.maximum(found, np.finfo(float).eps)).mean())
    shifted = {name: [0, 0, *rows[0][name]] for name in ("input_ids", "attention_mask", ANSWERABLE)}
    assert TASK.labels([{**shifted, START: rows[0][START] + 2, END: rows[0][END] + 2}], 2).tolist() == labels[:2].tolist()


def test_wrong_positions_other_models_and_the_trainers_evaluation_are_refused(run, trained):
    # Red for: the start alone measured as if it were the answer, a position in the question, start logits of a classifier.
    trainer, posterior, tokenizer, rows = run
    for changes, message in (
        ({START: None}, "start_positions=None"),
        ({END: 99}, "end_positions=99, which is no token"),
        ({START: 1}, "start_positions=1, which is no token"),
    ):
        with pytest.raises(SwagError, match=message):
            TASK.labels([{**rows[0], **changes}], 2)
    evaluating = PosteriorTrainer(model=trainer.model, args=trainer.args, processing_class=tokenizer)
    with pytest.raises(SwagError, match="evaluates one prediction.*swag-question-answering"):
        evaluating.use_posterior(posterior)
    classifier, swag = trained
    row = {"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1]}
    with pytest.raises(SwagError, match="needs start_logits and end_logits"):
        MonteCarloPredictor(classifier.model, swag.posterior, task=task_named(TASK.name)).predict([row])
