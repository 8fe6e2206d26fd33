"""The pipeline "swag-token-classification": words, offsets and scores of its parent in transformers, and an uncertainty for each."""

import warnings

import numpy as np
import pytest
from huggingface_hub import HfApi
from lively import lively
from peft import PeftModel, set_peft_model_state_dict
from tagging import TAGS, TEXTS, save_tagger, tagged, tagger, tagging_trainer
from transformers import AutoModelForTokenClassification, BertTokenizerFast, TokenClassificationPipeline, pipeline

from hub_cards import build_card
from swag_trainer import MonteCarloPredictor, SwagCallback, SwagError, SwagTokenClassificationPipeline, load_posterior
from swag_trainer.prediction.loading import AutoSwagModelForTokenClassification

TASK = "swag-token-classification"
BASE, REPO = "user/tiny-tagger", "user/tiny-tagger-swag"
STRATEGIES = ["none", "simple", "first", "average", "max"]
LONG = " ".join(TEXTS)


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    """A run on a base of the Hub, pushed as the Trainer pushes it; its posterior made lively, in a folder; and the tokenizer."""
    folder = tmp_path_factory.mktemp("tagger")
    HfApi().create_repo(BASE, exist_ok=True)
    HfApi().upload_folder(repo_id=BASE, folder_path=save_tagger(folder / "base"))
    tokenizer, swag = BertTokenizerFast.from_pretrained(folder / "base"), SwagCallback(rank=4)
    pushing = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": "hf_test"}
    rows = tagged(TEXTS * 3, tokenizer)
    trainer = tagging_trainer(tagger(BASE), rows, tokenizer, folder / "run", callbacks=[swag], **pushing)
    trainer.train()
    trainer.push_to_hub()
    lively(swag.posterior).save_pretrained(folder / "lively", dtype="float32")
    tokenizer.save_pretrained(folder / "lively")
    return trainer.model.eval(), swag.posterior, tokenizer, folder / "lively"


@pytest.fixture(scope="module")
def served(run):
    return pipeline(TASK, model=str(run[3]), device="cpu")


def close(found, expected):
    """Whether two outputs have the same entities, whose numbers differ by rounding only; uncertainties are the pipeline's own."""
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    own = {name: value for name, value in found.items() if name in expected}
    return own.pop("score") == pytest.approx(float(expected["score"]), abs=1e-5) and own == {
        name: value for name, value in expected.items() if name != "score"
    }


def test_at_scale_0_words_offsets_and_scores_are_the_parents_on_the_mean(run, served):
    # Red for: a special token that is counted, logits averaged in place of probabilities, a window whose tokens are those of another one,
    # text that is cut elsewhere, scores of padding, offsets of words that were split before.
    _, _, tokenizer, folder = run
    plain = PeftModel.from_pretrained(AutoModelForTokenClassification.from_pretrained(BASE), folder).eval()
    set_peft_model_state_dict(plain, load_posterior(folder).mean)
    parent = TokenClassificationPipeline(model=plain, tokenizer=tokenizer, device="cpu")
    texts, found = [*TEXTS, "", LONG], 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for strategy in STRATEGIES:
            for options, batch_size in (({"ignore_labels": []}, 1), ({"stride": 4}, 5)):
                if options.get("stride") and strategy == "none":
                    continue
                expected = parent(texts, aggregation_strategy=strategy, **options)
                own = served(texts, aggregation_strategy=strategy, scale=0, batch_size=batch_size, **options)
                assert close(own, expected), (strategy, options, batch_size)
                found += sum(map(len, own))
                assert all(entity["mutual_information"] == 0 for entities in own for entity in entities)
        words = [text.split() for text in TEXTS]
        split = {"is_split_into_words": True, "aggregation_strategy": "first"}
        assert close(served(words, scale=0, **split), parent(words, **split))
        assert close(served(TEXTS[0], scale=0, batch_size=2), parent(TEXTS[0])) and served([]) == []
        stream = (text for text in TEXTS)
        assert close(list(served(stream, scale=0)), parent(TEXTS))
    assert found > 150 and max(map(len, parent(texts, stride=4, aggregation_strategy="first"))) > 8


def test_scores_and_uncertainty_are_those_of_the_tokens_that_make_the_entity(run, served):
    # Red for: an entity's uncertainty from tokens that its score does not come from, from a sum, or from those of another entity.
    model, _, tokenizer, folder = run
    text, names = TEXTS[3], ("entropy", "aleatoric", "mutual_information")
    batch = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True)
    averaged = MonteCarloPredictor(model, load_posterior(folder), progress=False).predict(batch)
    tokens = served(text, ignore_labels=[])
    assert [token["index"] for token in tokens] == list(range(1, batch["input_ids"].shape[1] - 1))
    for place, token in enumerate(tokens):
        assert token["entity"] == TAGS[averaged.probabilities[place].argmax()]
        assert token["score"] == pytest.approx(averaged.probabilities[place].max(), abs=1e-6)
        assert all(token[name] == pytest.approx(getattr(averaged, name)[place], abs=1e-6) for name in names)
    assert max(token["mutual_information"] for token in tokens) > 0.05
    words = [place - 1 for place, word in enumerate(batch.word_ids()) if word is not None]
    of_word = [word for word in batch.word_ids() if word is not None]
    starts = np.array([tokenizer(text, return_offsets_mapping=True)["offset_mapping"][place + 1][0] for place in words])
    best = averaged.probabilities.max(axis=1)

    def by_hand(values, start, end, strategy):
        inside = [place for place in words if start <= starts[place] < end]
        groups = {word: [place for place in inside if of_word[place] == word] for word in dict.fromkeys(of_word)}
        groups = [group for group in groups.values() if group]
        if strategy == "simple":
            return values[inside].mean()
        kept = {
            "first": lambda group: group[:1],
            "max": lambda group: [group[best[group].argmax()]],
            "average": lambda group: group,
        }
        return np.mean([values[kept[strategy](group)].mean() for group in groups])

    longer = 0
    for strategy in STRATEGIES[1:]:
        for entity in served(text, ignore_labels=[], aggregation_strategy=strategy):
            longer += entity["end"] - entity["start"] > 6
            for name in names:
                expected = by_hand(getattr(averaged, name), entity["start"], entity["end"], strategy)
                assert entity[name] == pytest.approx(expected, abs=1e-6), (strategy, entity, name)
            assert entity["entropy"] == pytest.approx(entity["aleatoric"] + entity["mutual_information"])
    assert longer


def test_the_hub_gives_back_what_was_trained_with_its_labels_and_its_card(run):
    # Red for: a task or labels lost on the way, another path of prediction, a card for another task.
    model, posterior, tokenizer, _ = run
    here = SwagTokenClassificationPipeline(
        model=model, posterior=posterior.stored_as("bfloat16"), tokenizer=tokenizer, device="cpu"
    )
    assert pipeline(TASK, model=REPO, device="cpu")(TEXTS) == here(TEXTS)
    published = load_posterior(REPO).record
    assert published.task == TASK and published.labels == TAGS
    card = build_card(posterior, repo_id=REPO)
    assert card.data.pipeline_tag == "token-classification"
    example = str(card).partition("from peft import")[2].partition("```")[0]
    assert (
        "num_labels=5" in example
        and "AutoModelForTokenClassification" in example
        and 'pipeline("token-classification"' in example
    )
    names = {}
    exec(f"from peft import{example}", names)
    assert names["model"].base_model.model.config.id2label == dict(enumerate(TAGS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation_strategy": "best"}, "must be one of .*got 'best'"),
        ({"ignore_labels": "O"}, "is a list of labels"),
        ({"stride": 22}, "from 0 to 21 for windows of 24 tokens, got 22"),
        ({"stride": -1}, "from 0 to 21"),
        ({"stride": 4, "aggregation_strategy": "none"}, "select another one instead"),
        ({"truncation": False}, "knows no argument 'truncation'"),
        ({"agregation_strategy": "simple"}, "Did you mean 'aggregation_strategy'"),
        ({"risk": 0.1}, "has no risk=...: it is for predictions of one class for each example"),
        ({"abstain_below": 0.5}, "has no abstain_below"),
        ({"prediction_set": 0.9}, "has no prediction_set"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_text_is_read(run, served, options, message, monkeypatch):
    # Red for: a KeyError, an argument that is taken and does nothing, a refusal after the first text.
    model, posterior, tokenizer, _ = run
    monkeypatch.setattr(SwagTokenClassificationPipeline, "preprocess", None)  # which reads it
    with pytest.raises(SwagError, match=message):
        served(TEXTS, **options)
    with pytest.raises(SwagError, match=message):
        SwagTokenClassificationPipeline(model=model, posterior=posterior, tokenizer=tokenizer, **options)


def test_other_inputs_and_other_tasks_are_refused_by_name(run, served, tmp_path):
    # Red for: a dictionary of numbers in the place of an error, a classifier of texts whose logits are taken for those of tokens.
    for given in (7, {"text": "good"}, ["good"]):
        with pytest.raises(SwagError, match="takes a text, got"):
            served([given])
    with pytest.raises(SwagError, match="is for the task 'swag-token-classification', this pipeline for"):
        pipeline("swag-text-classification", model=run[0], posterior=run[1], tokenizer=run[2])
    with pytest.raises(SwagError, match="is for the task 'swag-token-classification'.*another kind of model"):
        pipeline("swag-multiple-choice", model=str(run[3]))
    assert AutoSwagModelForTokenClassification.from_pretrained(str(run[3])).config.id2label == dict(enumerate(TAGS))


def test_a_text_that_is_cut_is_counted(run):
    # Red for: the end of a text that is lost in silence; a text cut where it just fits, or in windows, that is counted.
    tag = pipeline(TASK, model=str(run[3]), device="cpu")
    tag([LONG, "good " * 22, *TEXTS])
    assert tag.num_truncated == 1
    tag(LONG, stride=4, aggregation_strategy="simple")
    assert tag.num_truncated == 1
