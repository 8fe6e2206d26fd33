"""Multiple choice by an encoder: against a plain loop over draws, questions and choices, and from Trainer to pipeline."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from choices import questions
from lively import lively
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertTokenizerFast,
    DataCollatorForMultipleChoice,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from swag_trainer import (
    ChoicePairCollator,
    ChoiceSettings,
    MonteCarloPredictor,
    MultipleChoiceMixin,
    Sampling,
    SwagCallback,
    SwagError,
    fit_posterior,
    tune,
)
from swag_trainer.adapters.weights import private_copy
from swag_trainer.tasks import task_for
from swag_trainer.tasks.multiple_choice_encoder import MultipleChoiceEncoder
from swag_trainer.tasks.question_encoder import PRESENT

TASK = "swag-multiple-choice-encoder"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class ChoiceTrainer(MultipleChoiceMixin, Trainer):
    pass


@pytest.fixture(scope="module")
def run(base_folder, tmp_path_factory):
    """A run of an encoder on questions of 3 to 5 choices: Trainer, posterior, a lively one, and the folder that this is saved in."""
    folder, tokenizer = tmp_path_factory.mktemp("encoder"), BertTokenizerFast.from_pretrained(base_folder)
    set_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.3, **SIZES)
    BertForMultipleChoice(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base = BertForMultipleChoice.from_pretrained(folder / "base")
    lora = LoraConfig(r=4, lora_dropout=0.1, target_modules=["query", "value"], modules_to_save=["classifier"])
    swag = SwagCallback(rank=4)
    quiet = {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False, "save_strategy": "no", "seed": 0}
    args = TrainingArguments(str(folder / "run"), max_steps=10, per_device_train_batch_size=4, learning_rate=1e-2, **quiet)
    trainer = ChoiceTrainer(
        model=get_peft_model(base, lora),
        args=args,
        train_dataset=questions(),
        eval_dataset=questions(6),
        processing_class=tokenizer,
        choice_settings=ChoiceSettings(max_choices=6),
        callbacks=[swag],
    )
    trainer.train()
    trainer.model.eval()
    posterior = lively(swag.posterior)
    posterior.save_pretrained(folder / "lively")
    return SimpleNamespace(trainer=trainer, model=trainer.model, made=swag.posterior, posterior=posterior, folder=folder)


def by_hand(run, vectors):
    """Logits under each weight vector: a forward for each question and choice, of one row without padding. Shape (S, N, 6)."""
    tokenizer, weights = run.trainer.processing_class, private_copy(run.model, None, run.posterior.layout.keys)
    found = torch.full((len(vectors), 6, 6), -torch.inf)
    with torch.no_grad():
        for number, vector in enumerate(vectors):
            weights.write(run.posterior.layout.unflatten(vector))
            for place, row in enumerate(questions(6)):
                for choice, text in enumerate(row["choices"]):
                    inputs = tokenizer(row["question"], text, return_tensors="pt")
                    found[number, place, choice] = weights.model(**{name: x[None] for name, x in inputs.items()}).logits[0, 0]
    return found


def test_logits_are_those_of_a_plain_loop_packed_or_not_and_missing_choices_are_impossible(run):
    # Red for: choices of another question or draw, a missing choice that counts, padding that is attended to, a row for each question
    # where there is one for each choice.
    predictor = MonteCarloPredictor(run.model, run.posterior, num_samples=3, progress=False)
    expected = by_hand(run, predictor._logits._blocks.first(1))
    collate = ChoicePairCollator(run.trainer.processing_class, 6)
    batch = collate(questions(6))
    assert batch["input_ids"].shape[:2] == (6, 5) and not batch[PRESENT].all()
    packed = predictor.logits(batch)
    assert predictor._logits.sampler.obstacle is None
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-4)
    rows = [collate.encode(row) for row in questions(6)]
    together = MonteCarloPredictor(run.model, run.posterior, num_samples=3, data_collator=collate, progress=False).predict(rows)
    by_mean = expected.double().softmax(-1).mean(0).numpy()
    np.testing.assert_allclose(together.probabilities, by_mean, rtol=0, atol=1e-5)
    assert (together.probabilities[np.isinf(expected[0].numpy())] == 0).all() and together.mutual_information.max() > 1e-3
    predictor._logits.sampler._give_up("to see the plain path")
    torch.testing.assert_close(predictor.logits(batch), packed, rtol=1e-4, atol=1e-4)
    assert predictor.task.tokens(batch, run.model) == batch["input_ids"].numel()
    dropped = MonteCarloPredictor(run.model, run.posterior, num_samples=2, scale=0, dropout=True)
    masked = dropped.logits(batch)
    assert dropped._logits.sampler.obstacle is None and not torch.equal(masked[0], masked[1])
    dropped._logits.sampler._give_up("to see the plain path")
    torch.testing.assert_close(dropped.logits(batch), masked, rtol=1e-4, atol=1e-4)


def test_at_the_mean_it_is_the_model_of_transformers_with_its_own_collator(run):
    # Red for: another order of questions and choices than transformers' models and data collator have.
    tokenizer = run.trainer.processing_class
    rows = [dict(tokenizer([row["question"]] * 3, row["choices"][:3])) | {"labels": 0} for row in questions(4)]
    batch = DataCollatorForMultipleChoice(tokenizer)([dict(row) for row in rows])
    weights = private_copy(run.model, None, run.posterior.layout.keys)
    weights.write(run.posterior.mean)
    with torch.no_grad():
        own = weights.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    for count in (1, 5):
        found = MonteCarloPredictor(run.model, run.posterior, scale=0, num_samples=count).predict(batch)
        np.testing.assert_allclose(found.probabilities[:, :3], own.softmax(-1).numpy(), rtol=0, atol=1e-5)
        assert found.probabilities[:, 3:].max() == 0 == found.mutual_information.max()


def test_the_loss_ignores_missing_choices_and_the_record_says_what_was_trained(run):
    # Red for: a loss over choices that there are not, a posterior that plain sequence classification loads, placeholders for labels.
    batch = run.trainer.data_collator(questions(6))
    with torch.no_grad():
        logits = run.model(**{name: x for name, x in batch.items() if x.ndim == 3}).logits
    expected = cross_entropy(logits.masked_fill(batch[PRESENT] == 0, -torch.inf), batch["labels"])
    assert run.trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), abs=1e-4)
    record = run.made.record
    assert (record.task, record.task_settings, record.labels) == (TASK, {"max_choices": 6}, None)
    assert task_for(record).num_classes(None) == 6


@pytest.mark.filterwarnings("ignore:On 24 examples", "ignore:Prediction sets")
def test_the_pipeline_ranks_the_choices_of_the_question(run):
    # Red for: another number of choices after loading, batches of questions in another order, a set with choices that there are not.
    choose = pipeline(TASK, model=str(run.folder / "lively"), num_samples=3, device="cpu")
    rows = questions(6)
    expected = by_hand(run, choose.posterior.draw(3, seed=0).vectors).double().softmax(-1).mean(0).numpy()
    for batch_size in (1, 4):
        for place, (row, ranking) in enumerate(zip(rows, choose(rows, top_k=None, batch_size=batch_size), strict=True)):
            order = (-expected[place]).argsort(kind="stable")[: len(row["choices"])]
            assert [one["choice"] for one in ranking] == [row["choices"][index] for index in order]
            np.testing.assert_allclose([one["score"] for one in ranking], expected[place][order], atol=1e-5)
    assert choose(rows[0]) == choose(rows[0], top_k=None)[0] and choose([]) == []
    assert choose(rows[0], abstain_below=1.0)["label"] is None
    collate = ChoicePairCollator(choose.tokenizer, 6)
    examples = [collate.encode(row) for row in questions(24)]
    few = Sampling(num_samples=2)
    tuned = tune(run.posterior, run.model, examples, sampling=few, data_collator=collate, progress=False, levels=(0.5,))
    sets = pipeline(TASK, model=run.model, posterior=tuned, tokenizer=choose.tokenizer, device="cpu")
    found = sets(rows[0], prediction_set=0.5, prediction_set_method="aps")["prediction_set"]
    assert found and set(found) <= {"A", "B", "C"}


def test_what_cannot_be_done_is_refused(run, base_folder, tmp_path):
    # Red for: a raw KeyError or IndexError; settings that an encoder does not have, taken in silence.
    from conftest import lora_model

    choose = pipeline(TASK, model=run.model, posterior=run.posterior, tokenizer=run.trainer.processing_class, device="cpu")
    with pytest.raises(SwagError, match="from 2 to max_choices=6"):
        choose({"question": "good", "choices": ["bad"] * 7})
    with pytest.raises(SwagError, match="takes questions"):
        choose("good")
    with pytest.raises(SwagError, match="such as AutoModelForMultipleChoice loads"):
        MultipleChoiceEncoder().for_model(lora_model(base_folder))
    with pytest.raises(SwagError, match="takes max_choices alone"):
        ChoiceTrainer(
            model=run.model,
            args=TrainingArguments(str(tmp_path), report_to=[]),
            processing_class=run.trainer.processing_class,
            choice_settings=ChoiceSettings(scoring="answers"),
        )
    predictor = MonteCarloPredictor(run.model, run.posterior, num_samples=2)
    with pytest.raises(SwagError, match=r"\(questions, choices, tokens\).*got \(2, 3\)"):
        predictor.logits({"input_ids": torch.ones(2, 3, dtype=torch.long)})
    with pytest.raises(SwagError, match="has the setting 'max_choices'"):
        MultipleChoiceEncoder().configured({"prompt": "x"})
    with pytest.raises(SwagError, match="max_choices must be from 2"):
        MultipleChoiceEncoder().configured({"max_choices": 1})
    collate = ChoicePairCollator(run.trainer.processing_class, 6)
    examples = [collate.encode(row) for row in questions(24)]
    with pytest.raises(SwagError, match="for 'swag-multiple-choice-encoder' has none"):
        fit_posterior(run.model, examples, method="laplace-head", data_collator=collate, progress=False)
    assert len(MultipleChoiceEncoder(6).labels(examples, 6)) == 24
    with pytest.raises(SwagError, match="Row 0 has the right choice 4, and 3 choices"):
        MultipleChoiceEncoder(6).labels([examples[0] | {"labels": 4}], 6)
