"""Multiple choice by a causal language model: both scorings against a plain loop over draws, questions and choices."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from choices import choice_tokenizer, language_model, questions, save_base
from lively import lively
from oracles import gauss_newton
from transformers import Trainer, TrainingArguments

from swag_trainer import ChoiceCollator, ChoiceSettings, MonteCarloPredictor, MultipleChoiceMixin, SwagCallback, SwagError
from swag_trainer.adapters.weights import private_copy
from swag_trainer.fitting.fit import fit_posterior
from swag_trainer.fitting.lora_laplace import linear_layers
from swag_trainer.prediction.sequential import SequentialSampler, event_logits
from swag_trainer.tasks import task_for, task_named
from swag_trainer.tasks.multiple_choice import MultipleChoice
from swag_trainer.tasks.question_encoder import LETTER, PRESENT, QuestionEncoder
from swag_trainer.tasks.shared_prompt import CHOICE


class ChoiceTrainer(MultipleChoiceMixin, Trainer):
    pass


def train(model, tokenizer, folder, settings, **arguments):
    """A run of 12 steps of 4 questions: the Trainer and its callback."""
    swag = SwagCallback(rank=3)
    defaults = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no"}
    quiet = {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 0}
    trainer = ChoiceTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **(defaults | quiet | arguments)),
        train_dataset=questions(),
        eval_dataset=questions(6),
        processing_class=tokenizer,
        choice_settings=settings,
        callbacks=[swag],
    )
    trainer.train()
    return trainer, swag


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def decoder(request, tmp_path_factory):
    """A model with a posterior of draws that differ widely; the questions are put to it in either way."""
    folder = tmp_path_factory.mktemp(request.param)
    model = language_model(request.param, save_base(request.param, folder))
    _, swag = train(model, choice_tokenizer(), folder / "run", ChoiceSettings(scoring="answers"))
    return SimpleNamespace(name=request.param, model=model.eval(), posterior=lively(swag.posterior))


def by_hand(decoder, settings, predictor):
    """Logits of every draw: one forward a draw and question, or choice, of one row without padding. Shape (S, N, C)."""
    tokenizer, weights = choice_tokenizer(), private_copy(decoder.model, None, decoder.posterior.layout.keys)
    draws = predictor._logits._blocks.first(1)
    found = torch.full((len(draws), 6, settings.max_choices), -torch.inf)
    with torch.no_grad():
        for number, draw in enumerate(draws):
            weights.write(decoder.posterior.layout.unflatten(draw))
            for place, row in enumerate(questions(6)):
                for choice, answer in enumerate(row["choices"]):
                    prompt = f"Question: {row['question']}\nAnswer:"
                    if settings.scoring == "letters":
                        listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDE", row["choices"], strict=False))
                        prompt, answer = f"Question: {row['question']}\n{listed}\nAnswer:", "ABCDE"[choice]
                    ids, target = (torch.tensor(tokenizer(text)["input_ids"]) for text in (prompt, answer))
                    logits = weights.model(input_ids=torch.cat([ids, target])[None]).logits[0, len(ids) - 1 : -1]
                    if settings.scoring == "letters":
                        found[number, place, choice] = logits[0, target[0]]
                    else:
                        found[number, place, choice] = logits.log_softmax(-1).gather(1, target[:, None]).mean()
    return found


@pytest.mark.parametrize("scoring", ["letters", "answers"])
def test_probabilities_are_those_of_a_plain_loop_whatever_the_padding(decoder, scoring):
    # Red for: padding on the left that moves GPT-2's positions, the logits of a padded position, a choice that attends to another one or
    # counts its positions behind it, a sum in place of a mean, a missing choice with a probability, draws in another order.
    settings, tokenizer = ChoiceSettings(scoring=scoring), choice_tokenizer()
    predictor = MonteCarloPredictor(
        decoder.model, decoder.posterior, task=MultipleChoice(settings), num_samples=3, progress=False
    )
    expected = by_hand(decoder, settings, predictor)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = ChoiceCollator(tokenizer, settings)(questions(6))
        assert not batch["attention_mask"].all()
        torch.testing.assert_close(predictor.logits(batch), expected, rtol=0, atol=1e-4)
    assert predictor._logits.sampler.obstacle is None
    averaged = predictor.predict(batch)
    by_mean = expected.double().softmax(-1).mean(0).numpy()
    np.testing.assert_allclose(averaged.probabilities, by_mean, rtol=0, atol=1e-5)
    assert (averaged.probabilities[np.isinf(expected[0].numpy())] == 0).all()
    rows = [QuestionEncoder(tokenizer, settings)(row) for row in questions(6)]
    np.testing.assert_allclose(predictor.predict(rows).probabilities, by_mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scoring", ["letters", "answers"])
def test_packed_draws_are_those_of_one_forward_each(decoder, scoring):
    # Red for: draws and questions mixed up in a packed tree mask, a position that is pruned though it is read.
    settings = ChoiceSettings(scoring=scoring)
    batch = ChoiceCollator(choice_tokenizer(), settings)(questions(6))
    predictor = MonteCarloPredictor(decoder.model, decoder.posterior, task=MultipleChoice(settings), num_samples=4)
    packed = predictor.logits(batch)
    assert predictor._logits.sampler.obstacle is None
    predictor._logits.sampler._give_up("to see the plain path")
    torch.testing.assert_close(predictor.logits(batch), packed, rtol=0, atol=1e-4)


def test_only_the_logits_that_are_read_are_computed(decoder):
    # Red for: logits_to_keep left out, which makes V logits for every token of every draw.
    task = MultipleChoice(ChoiceSettings()).for_model(decoder.model)
    batch = ChoiceCollator(choice_tokenizer())(questions(1))
    assert task.inputs(batch)["logits_to_keep"] == 1
    task = MultipleChoice(ChoiceSettings(scoring="answers")).for_model(decoder.model)
    batch = ChoiceCollator(choice_tokenizer(), ChoiceSettings(scoring="answers"))(questions(1))
    assert task.inputs(batch)["logits_to_keep"] == int((batch[CHOICE] > 0).sum()) + 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_letters_of_a_padded_batch_are_those_of_each_row(decoder, side):
    # Red for: a loss that reads a padded position, or positions that count the padding on the left.
    tokenizer = choice_tokenizer()
    tokenizer.padding_side = side
    collator, task = ChoiceCollator(tokenizer), MultipleChoice().for_model(decoder.model)
    batch, rows = collator(questions(6)), [collator([row]) for row in questions(6)]
    with torch.no_grad():
        together = task.read(decoder.model(**task.inputs(batch)), batch)
        single = torch.cat([task.read(decoder.model(**task.inputs(row)), row) for row in rows])
    torch.testing.assert_close(together, single, rtol=0, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_choices_behind_one_question_are_scored_as_one_by_one(decoder, attention, side):
    # Red for: a mask that eager attention adds as 0 and 1, positions that are not reset, the first token of a choice predicted from the
    # choice before, and a model that takes no mask of four dimensions given one.
    settings, tokenizer = ChoiceSettings(scoring="answers", inverse_temperature=2.0), choice_tokenizer()
    tokenizer.padding_side = side
    model = copy.deepcopy(decoder.model)
    model.set_attn_implementation(attention)
    batch = ChoiceCollator(tokenizer, settings)(questions(6))
    task = MultipleChoice(settings).for_model(model)
    assert task._mask == {"sdpa": "boolean", "eager": "additive"}[attention]
    one_by_one = copy.copy(task)
    one_by_one._mask = None
    beyond = copy.copy(task)
    beyond._window = 4
    with torch.no_grad():
        found, expected, cut = (each.read(model(**each.inputs(batch)), batch) for each in (task, one_by_one, beyond))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(cut, expected)  # beyond the window of local attention there is no tree


def test_a_model_that_takes_no_tree_mask_is_given_a_row_for_each_choice_packed_too(decoder, monkeypatch):
    # Red for: rows of choices packed as if they were rows of the batch, or a model's word taken for what it does with a mask.
    settings = ChoiceSettings(scoring="answers")
    batch = ChoiceCollator(choice_tokenizer(), settings)(questions(6))
    arguments = {"task": MultipleChoice(settings), "num_samples": 3}
    expected = MonteCarloPredictor(decoder.model, decoder.posterior, **arguments).logits(batch)
    kind = type(decoder.model.get_base_model())
    plain = kind.forward

    def ignorant(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        if attention_mask.ndim == 4:
            attention_mask = torch.ones_like(input_ids)
        return plain(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(kind, "forward", ignorant)
    predictor = MonteCarloPredictor(decoder.model, decoder.posterior, **arguments)
    torch.testing.assert_close(predictor.logits(batch), expected, rtol=0, atol=1e-4)
    assert predictor._logits.sampler.obstacle is None


def test_scale_0_is_the_plain_model_at_the_mean(decoder):
    # Red for: a point that is drawn around, or S = 1 that is another path with another result.
    settings = ChoiceSettings(scoring="answers")
    batch = ChoiceCollator(choice_tokenizer(), settings)(questions(6))
    weights = private_copy(decoder.model, None, decoder.posterior.layout.keys)
    weights.write(decoder.posterior.mean)
    task = MultipleChoice(settings).for_model(weights.model)
    with torch.no_grad():
        logits = task.read(weights.model(**task.inputs(batch)), batch).masked_fill(task.missing(batch), -torch.inf)
    for count in (1, 5):
        predictor = MonteCarloPredictor(
            decoder.model, decoder.posterior, task=MultipleChoice(settings), scale=0, num_samples=count
        )
        averaged = predictor.predict(batch)
        np.testing.assert_allclose(averaged.probabilities, logits.softmax(-1).numpy(), rtol=0, atol=1e-5)
        assert (averaged.mutual_information == 0).all()


def test_linearized_and_dropped_out_draws_take_both_scorings(decoder):
    # Red for: inputs of the task left out of one of the ways to draw. At a small scale all of them are near the mean.
    for scoring in ("letters", "answers"):
        settings = ChoiceSettings(scoring=scoring)
        batch = ChoiceCollator(choice_tokenizer(), settings)(questions(6))
        arguments = {"task": MultipleChoice(settings), "num_samples": 2}
        mean = MonteCarloPredictor(decoder.model, decoder.posterior, scale=0, **arguments).predict(batch).probabilities
        linear = MonteCarloPredictor(decoder.model, decoder.posterior, scale=1e-9, method="linearized", **arguments)
        np.testing.assert_allclose(linear.predict(batch).probabilities, mean, rtol=0, atol=1e-3)
        dropped = MonteCarloPredictor(decoder.model, decoder.posterior, scale=0, dropout=True, **arguments)
        packed = dropped.logits(batch)
        assert dropped._logits.sampler.obstacle is None and not np.allclose(packed[0], packed[1])
        dropped._logits.sampler._give_up("to see the plain path")
        torch.testing.assert_close(dropped.logits(batch), packed, rtol=0, atol=1e-4)


def test_the_loss_is_the_cross_entropy_of_the_right_choice(decoder, tmp_path):
    # Red for: the next-token loss of the model itself, a batch's mean divided by its tokens, missing choices in the sum.
    settings = ChoiceSettings(scoring="answers")
    arguments = {"max_steps": 3, "gradient_accumulation_steps": 2, "logging_steps": 1, "learning_rate": 1e-12}
    model = copy.deepcopy(decoder.model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer, _ = train(model, choice_tokenizer(), tmp_path, settings, **arguments)
    metrics = trainer.evaluate()
    task, batch = MultipleChoice(settings).for_model(decoder.model), trainer.data_collator(questions(6))
    with torch.no_grad():
        logits = task.read(decoder.model(**task.inputs(batch)), batch).masked_fill(task.missing(batch), -torch.inf)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
    assert metrics["eval_loss"] == pytest.approx(float(loss), abs=1e-4)
    predictions = trainer.predict(questions(6)).predictions
    np.testing.assert_allclose(predictions, logits.numpy(), rtol=0, atol=1e-4)
    # Three steps of two batches of 4 questions are all 24 questions.
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    whole = trainer.evaluate(questions())["eval_loss"]
    assert len(logged) == 3 and np.mean(logged) == pytest.approx(whole, abs=1e-3)


def test_settings_travel_in_the_record_and_make_the_task(tmp_path):
    # Red for: a run whose posterior predicts by letters what was trained by answers, or takes placeholders for labels.
    settings = ChoiceSettings(scoring="answers", inverse_temperature=1.5, max_choices=6)
    model = language_model("llama", save_base("llama", tmp_path / "base"))
    trainer, swag = train(model, choice_tokenizer(chat=True), tmp_path / "run", settings, max_steps=4)
    record = swag.posterior.record
    assert (record.task, record.labels) == ("swag-multiple-choice", None)
    assert record.task_settings == {
        "scoring": "answers", "prompt": "{question}", "chat": True, "inverse_temperature": 1.5, "max_choices": 6
    }  # fmt: skip
    task = task_for(record)
    assert task.settings == trainer.data_collator.encoder.settings and task.num_classes(None) == 6
    predictor = MonteCarloPredictor(model, swag.posterior, num_samples=2)
    rows = [trainer.data_collator.encoder(row) for row in questions(4)]
    assert predictor.predict(rows).probabilities.shape == (4, 6)
    assert task_named("swag-multiple-choice").settings == ChoiceSettings()


def test_what_cannot_be_done_is_refused_before_a_question_is_answered(decoder, tmp_path):
    # Red for: a raw KeyError from a classifier, an encoder-decoder, or a Trainer without a tokenizer.
    with pytest.raises(SwagError, match="pass processing_class"):
        ChoiceTrainer(model=decoder.model, args=TrainingArguments(output_dir=str(tmp_path), report_to=[]))
    trainer, _ = train(copy.deepcopy(decoder.model), choice_tokenizer(), tmp_path, ChoiceSettings(), max_steps=4)
    batch = trainer.data_collator([{"question": "a", "choices": ["b", "c"]}])
    with pytest.raises(SwagError, match='right choice in "answer"'):
        trainer.compute_loss(trainer.model, batch)
    task = MultipleChoice()
    encoded = [{**trainer.data_collator.encoder(row), "labels": 4} for row in questions(2)]
    with pytest.raises(SwagError, match="Row 0 has the right choice 4, and 3 choices"):
        task.labels(encoded, 5)
    with pytest.raises(SwagError, match="scoring=3"):
        task_for(SimpleNamespace(task="swag-multiple-choice", task_settings={"scoring": 3}))
    with pytest.raises(SwagError, match="no settings"):
        task_for(SimpleNamespace(task=None, task_settings={"scoring": "letters"}))


def test_a_classifier_is_refused(base_folder):
    # Red for: an AttributeError in the first forward.
    from conftest import lora_model

    with pytest.raises(SwagError, match="causal language model.*BertForSequenceClassification"):
        MultipleChoice().for_model(lora_model(base_folder))


def test_unbound_sampling_reads_a_batch_too(decoder):
    # Red for: a task that only works when the predictor has bound it to a model.
    batch = ChoiceCollator(choice_tokenizer())(questions(1))
    weights = private_copy(decoder.model, None, decoder.posterior.layout.keys)
    found = SequentialSampler(weights, decoder.posterior.mean_vector()[None], task=MultipleChoice())(batch)
    assert found.shape == (1, 1, 5) and LETTER in batch and PRESENT not in batch


def test_a_prompt_that_is_cut_in_training_is_said_once(caplog):
    # Red for: questions that lose their beginning without a word, or with one for each.
    collate = ChoiceCollator(choice_tokenizer(), ChoiceSettings(scoring="letters"), max_length=12)
    for _ in range(2):
        collate(questions(4))
    assert collate.encoder.num_truncated == 8
    assert [record.message.partition(",")[0] for record in caplog.records] == ["A prompt is too long for the model"]


def test_a_model_that_chooses_has_no_head_for_laplace(decoder):
    # Red for: a search for a head of another shape, and an error that blames modules_to_save.
    if decoder.name != "llama":
        pytest.skip("one model is enough")
    rows = [QuestionEncoder(choice_tokenizer(), ChoiceSettings(scoring="answers"))(row) for row in questions(24)]
    with pytest.raises(SwagError, match="for 'swag-multiple-choice' has none"):
        fit_posterior(decoder.model, rows, method="laplace-head", progress=False)


def test_laplace_over_lora_is_that_of_the_choices(decoder):
    # Red for: a choice that a question lacks with a probability, logits of the positions in the place of those of the choices.
    if decoder.name != "llama":
        pytest.skip("one model is enough")
    settings, tokenizer = ChoiceSettings(scoring="answers"), choice_tokenizer()
    rows = [QuestionEncoder(tokenizer, settings)(row) for row in questions(20)]
    fitted = fit_posterior(decoder.model, rows, method="laplace", prior_precision=1e-3, progress=False)
    assert fitted.record.task == "swag-multiple-choice"
    weights, task = private_copy(decoder.model, None, fitted.layout.keys), MultipleChoice(settings)
    key, layer = list(linear_layers(weights).items())[-1]
    layer.requires_grad_(True)
    batch = ChoiceCollator(tokenizer, settings)(questions(20))
    logits = event_logits(task, weights.model, batch)
    present = [row[~missing] for row, missing in zip(logits, task.missing(batch), strict=True)]
    dense = gauss_newton(present, layer.weight)
    left, right = (torch.linalg.eigvalsh(torch.einsum(traced, dense)) for traced in ("oipi->op", "oioj->ij"))
    block = fitted.blocks[-1]
    torch.testing.assert_close(block.left_values.double(), (left / left.sum())[-len(block.left_values) :], rtol=1e-2, atol=1e-4)
    scale = float(right.sum())
    torch.testing.assert_close(block.right_values.double(), right[-len(block.right_values) :], rtol=1e-2, atol=1e-4 * scale)
