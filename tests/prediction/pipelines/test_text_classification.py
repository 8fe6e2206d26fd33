import copy

import numpy as np
import pytest
import torch
from conftest import LABELS, lora_model, trainer_for
from datasets import Dataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import swag_trainer  # noqa: F401 - registers the task
from swag_trainer import MonteCarloPredictor, PosteriorNotFoundError, SwagCallback, SwagError, SwagTextClassificationPipeline
from swag_trainer.prediction.decisions import PredictionOptions


@pytest.fixture
def classify(trained):
    trainer, swag = trained
    swag.posterior.with_scale(20.0).save_pretrained(trainer.args.output_dir)
    return pipeline("swag-text-classification", model=trainer.args.output_dir, seed=0, device="cpu")


def test_it_gives_label_score_entropy_and_mutual_information_of_the_averaged_draws(classify, trained, texts, tokenizer):
    # Red for: a point estimate, an uncertainty of other draws, or labels of the base's config.
    trainer, swag = trained
    answers = classify(texts)
    rows = [dict(tokenizer(text)) for text in texts]
    stored = swag.posterior.stored_as("bfloat16")
    ours = MonteCarloPredictor(trainer.model, stored, scale=20.0, batch_size=1).predict(rows)
    for row, answer in enumerate(answers):
        best = int(ours.probabilities[row].argmax())
        assert answer == {
            "label": LABELS[best],
            "score": ours.probabilities[row, best],
            "entropy": ours.entropy[row],
            "mutual_information": ours.mutual_information[row],
        }
    assert max(answer["mutual_information"] for answer in answers) > 1e-4


def test_inputs_have_the_forms_that_transformers_gives_them(classify, texts):
    # Red for: any convention of TextClassificationPipeline lost; the plain pipeline's forms are the oracle.
    text = texts[0]
    plain = pipeline("text-classification", model=classify.model, tokenizer=classify.tokenizer, device="cpu")
    for inputs, arguments in [
        (text, {}),
        ([text, texts[1]], {}),
        ([text], {}),
        ({"text": text, "text_pair": texts[1]}, {}),
        ([{"text": text, "text_pair": texts[1]}], {}),
        (text, {"top_k": None}),
        (text, {"top_k": 1}),
        (text, {"top_k": 2}),
        ([text, texts[1]], {"top_k": 2}),
        (text, {"function_to_apply": "none"}),
        ([text, texts[1]], {"truncation": True, "max_length": 4, "batch_size": 2}),
        ([text, texts[1]], {"padding": "max_length", "max_length": 16}),
    ]:
        ours, theirs = classify(inputs, **arguments), plain(inputs, **arguments)
        assert forms(ours) == forms(theirs), (inputs, arguments)


def forms(answer):
    if isinstance(answer, list):
        return [forms(item) for item in answer]
    return "answer" if {"label", "score"} <= set(answer) else answer


def test_truncation_reaches_the_tokenizer(classify):
    # Red for: arguments swallowed on the way. 200 words do not fit into the 64 positions of the tiny model.
    with pytest.raises(Exception, match="64|size"):
        classify("good " * 200, truncation=False)
    assert classify("good " * 200, truncation=True)[0]["label"] in LABELS


@pytest.mark.parametrize("own", [10**30, 64, 9])
def test_a_text_that_the_model_cannot_take_is_cut_where_tokenizer_and_model_end(classify, tokenizer, own):
    # Red for: a tokenizer without a length of its own, after which one long text ends a whole file; a cut that is not counted.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = own
    pipe = SwagTextClassificationPipeline(model=classify.model, tokenizer=tokenizer, posterior=classify.posterior, device="cpu")
    length = min(own, 64)
    assert len(pipe.preprocess("good " * 200)["input_ids"][0]) == length
    cut = " ".join(["good"] * (length - 2))  # and [CLS] and [SEP]
    assert pipe(["good " * 200, cut]) == pipe([cut, cut])
    assert pipe.num_truncated == 2


def test_lists_data_sets_columns_and_generators_are_answered_alike(classify, texts):
    # Red for: datasets.Column, which is no list, refused; an empty list that raises IndexError.
    expected = classify(texts)
    data = Dataset.from_dict({"text": texts})
    assert classify(data["text"]) == expected
    assert list(classify(KeyDataset(data, "text"))) == expected
    assert list(classify(text for text in texts)) == expected
    assert classify([]) == []


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_answers_do_not_depend_on_the_batch_size(classify, texts, batch_size):
    # Red for: draws along the first axis, which transformers takes for the batch.
    expected, found = classify(texts, batch_size=5), classify(texts, batch_size=batch_size)
    for name in ("score", "entropy", "mutual_information"):
        np.testing.assert_allclose([row[name] for row in found], [row[name] for row in expected], rtol=0, atol=1e-6)


def test_samples_scale_and_seed_may_be_given_in_the_call(classify, texts):
    # Red for: an option of the call that the constructor's value overrides, or that stays for later calls.
    first = classify(texts[:2])
    assert classify(texts[:2], seed=1) != first
    assert classify(texts[:2], num_samples=4) != first
    assert [row["mutual_information"] for row in classify(texts[:2], scale=0)] == [0, 0]
    assert classify(texts[:2]) == first
    other = pipeline(
        "swag-text-classification",
        model=classify.model,
        tokenizer=classify.tokenizer,
        num_samples=4,
        seed=1,
        scale=2.0,
        device="cpu",
    )
    assert other(texts[:2]) == classify(texts[:2], num_samples=4, seed=1, scale=2.0)


def test_what_the_constructor_asked_for_can_be_read_and_a_call_changes_nothing_of_it(trained, texts, tokenizer):
    # Red for: the options of the last call, or settled numbers that would hold for another scale too.
    model, posterior = trained[0].model, trained[1].posterior
    options = {"model": model, "posterior": posterior, "tokenizer": tokenizer, "device": "cpu"}
    classify = pipeline("swag-text-classification", num_samples=3, scale=2.0, **options)
    classify(texts[0], num_samples=4, seed=1, abstain_below=0.5)
    assert classify.options == PredictionOptions(sampling={"num_samples": 3, "scale": 2.0})
    assert pipeline("swag-text-classification", **options).options == PredictionOptions()


@pytest.mark.parametrize("arguments", [{"num_sample": 5}, {"n_samples": 5}, {"temperatur": 2.0}, {"topk": 1}])
def test_a_misspelt_argument_is_refused_by_name_in_call_and_constructor(classify, texts, arguments):
    # Red for: an argument that becomes the tokenizer's in silence.
    name = next(iter(arguments))
    with pytest.raises(SwagError, match=rf"no argument '{name}'"):
        classify(texts[0], **arguments)
    with pytest.raises(SwagError, match=rf"no argument '{name}'"):
        pipeline("swag-text-classification", model=classify.model, tokenizer=classify.tokenizer, **arguments)
    with pytest.raises(SwagError, match=rf"no argument '{name}'"):
        classify([], **arguments)


@pytest.mark.parametrize("arguments", [{"num_samples": 0}, {"num_samples": -3}, {"scale": -1.0}, {"top_k": 1.5}, {"top_k": 0}])
def test_a_number_out_of_range_is_refused(classify, texts, arguments):
    # Red for: num_samples=0 taken for "not given", a TypeError where labels are counted in halves.
    with pytest.raises(SwagError, match=r"got (0|-3|-1|1\.5)"):
        classify(texts[0], **arguments)


def test_a_folder_without_posterior_is_refused_and_named(trained, tmp_path):
    # Red for: an OSError, which transformers swallows and answers with a model of its own.
    trainer, _ = trained
    trainer.model.save_pretrained(tmp_path / "bare")
    with pytest.raises(PosteriorNotFoundError, match=r"bare.*has no swag_posterior"):
        pipeline("swag-text-classification", model=str(tmp_path / "bare"))
    with pytest.raises(PosteriorNotFoundError, match=r"comes without a posterior"):
        pipeline("swag-text-classification", model=trainer.model, tokenizer=trainer.processing_class)


def test_a_model_in_memory_takes_its_posterior_as_an_argument(trained, texts):
    # Red for: a pipeline that only loads.
    trainer, swag = trained
    classify = SwagTextClassificationPipeline(
        model=trainer.model, tokenizer=trainer.processing_class, posterior=swag.posterior, device="cpu"
    )
    assert classify(texts[0])[0]["label"] in LABELS


def test_what_the_pipeline_saves_it_can_load(classify, texts, tmp_path):
    # Red for: Pipeline.save_pretrained, which copies our module file and leaves the posterior out.
    classify.save_pretrained(tmp_path / "saved")
    again = pipeline("swag-text-classification", model=str(tmp_path / "saved"), seed=0, device="cpu")
    assert again(texts) == classify(texts)


def test_labels_that_do_not_exclude_each_other_and_numbers_keep_their_kind_through_the_file(
    base_folder, rows, tokenizer, texts, tmp_path
):
    # Red for: problem_type lost between training and loading.
    def answers(name, num_labels, label):
        targets = [{**row, "labels": label(row["labels"])} for row in rows]
        trainer = trainer_for(
            lora_model(base_folder, num_labels=num_labels), targets, tokenizer, tmp_path / name, callbacks=[SwagCallback()]
        )
        trainer.train()
        return pipeline("swag-text-classification", model=str(tmp_path / name), device="cpu")(texts[0], top_k=None)

    many = answers("multi", 4, lambda k: torch.nn.functional.one_hot(torch.tensor(k), 4).float().tolist())
    assert not np.isclose(sum(row["score"] for row in many), 1.0)
    assert all(0 <= row["score"] <= 1 for row in many)
    number = answers("number", 1, float)
    assert set(number[0]) == {"label", "score", "std"}
    assert number[0]["std"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"design": "iid", "num_samples": 5},
        {"num_samples": 4, "max_error": 0.0005},
        {"method": "linearized"},
        {"dropout": True, "scale": 0},
    ],
)
def test_what_the_predictor_can_do_the_pipeline_does_too(classify, trained, texts, tokenizer, options):
    # Red for: an option that is taken and not used, or kept for later calls.
    trainer, swag = trained
    plain = classify(texts[:3], batch_size=2)
    stored = swag.posterior.with_scale(20.0).stored_as("bfloat16")
    ours = MonteCarloPredictor(trainer.model, stored, **options)
    for text, found in zip(texts[:3], classify(texts[:3], **options), strict=True):
        expected = ours.predict([dict(tokenizer(text))])
        assert found["score"] == pytest.approx(expected.probabilities.max(), abs=1e-9)
        assert found["mutual_information"] == pytest.approx(expected.mutual_information[0], abs=1e-9)
    assert classify(texts[:3], batch_size=2) == plain and found["score"] != plain[2]["score"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "linearised"}, "method must be one of"),
        ({"method": "linearized", "max_error": 0.1}, "draws no weights"),
        ({"max_error": 0.0}, "max_error.*got 0"),
        ({"design": "pairs"}, "design must be one of"),
    ],
)
def test_what_the_predictor_refuses_is_refused_before_a_text_is_read(classify, options, message):
    # Red for: an error in the middle of a data set.
    with pytest.raises(SwagError, match=message):
        classify([], **options)
