"""The pipeline "swag-image-classification" against transformers' own on the mean, and against a plain loop over draws."""

import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lively import lively
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
    set_seed,
)

from hub_cards import build_card
from swag_trainer import (
    MonteCarloPredictor,
    PosteriorNotFoundError,
    Sampling,
    SwagCallback,
    SwagError,
    SwagImageClassificationPipeline,
    fit_posterior,
    tune,
)
from swag_trainer.adapters.weights import private_copy
from swag_trainer.evaluation.methods import predict_methods
from swag_trainer.prediction.image_processors import load_image_processor
from swag_trainer.tasks import task_for

TASK = "swag-image-classification"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NAMES = ["red", "green", "blue"]


def images(count=9):
    """Images of 20 x 14 pixels of one colour each, with noise."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(count):
        pixels = generator.integers(0, 120, (14, 20, 3))
        pixels[..., index % 3] += 120
        made.append(Image.fromarray(pixels.astype(np.uint8)))
    return made


def processor_of(**options):
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 16, "width": 16}, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny ViT on disk, and a run on it: the model, a lively posterior, and the folder that both were saved in."""
    folder = tmp_path_factory.mktemp("vit")
    set_seed(0)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    config = ViTConfig(**SIZES, image_size=16, patch_size=8, initializer_range=0.3, **labels)
    ViTForImageClassification(config).save_pretrained(folder / "base")
    processor_of().save_pretrained(folder / "base")
    base = ViTForImageClassification.from_pretrained(folder / "base")
    lora = LoraConfig(
        r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj", "query", "value"], modules_to_save=["classifier"]
    )
    model, swag = get_peft_model(base, lora), SwagCallback(rank=4)
    pixels = processor_of()(images=images(), return_tensors="pt")["pixel_values"]
    rows = [{"pixel_values": image, "labels": index % 3} for index, image in enumerate(pixels)]
    quiet = {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False, "save_strategy": "no", "seed": 0}
    args = TrainingArguments(
        output_dir=str(folder / "run"), max_steps=8, per_device_train_batch_size=3, learning_rate=1e-2, **quiet
    )
    Trainer(model=model, args=args, train_dataset=rows, callbacks=[swag]).train()
    posterior = lively(swag.posterior)
    posterior.save_pretrained(folder / "lively")
    return SimpleNamespace(model=model.eval(), posterior=posterior, folder=folder, pixels=pixels, made=swag.posterior)


@pytest.fixture(scope="module")
def classify(run):
    return pipeline(TASK, model=str(run.folder / "lively"), device="cpu")


def test_at_the_mean_it_is_the_pipeline_of_transformers(run, classify, tmp_path):
    # Red for: any convention of ImageClassificationPipeline lost (five labels, the order, a list for one image), another image
    # processor, or a score that is not that of the mean.
    weights = private_copy(run.model, None, run.posterior.layout.keys)
    weights.write(classify.posterior.mean)
    plain = pipeline("image-classification", model=weights.model, image_processor=processor_of(), device="cpu")
    paths = []
    for index, image in enumerate(images(4)):
        paths.append(str(tmp_path / f"{index}.png"))
        image.save(paths[-1])
    for inputs, arguments in [
        (paths[0], {}),
        (images(1)[0], {"top_k": 1}),
        (paths, {"top_k": 2}),
        (images(4), {"batch_size": 3}),
        (images(2), {"function_to_apply": "sigmoid", "top_k": 9}),
        (images(2), {"function_to_apply": "none"}),
        (paths[0], {"timeout": 3.0}),
    ]:
        theirs = plain(inputs, **arguments)
        for extra in ({"scale": 0}, {"scale": 0, "num_samples": 1}):
            ours = classify(inputs, **arguments, **extra)
            assert same_form(ours, theirs), (inputs, arguments)
    assert classify([]) == []


def same_form(ours, theirs):
    if isinstance(theirs, list):
        return isinstance(ours, list) and len(ours) == len(theirs) and all(map(same_form, ours, theirs))
    return ours["label"] == theirs["label"] and ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_probabilities_are_those_of_a_plain_loop_over_draws_packed_or_not(run, classify):
    # Red for: draws and images mixed up, a mean of logits, draws that run one after the other although they can be packed.
    predictor = MonteCarloPredictor(run.model, classify.posterior, num_samples=3)
    weights, expected = private_copy(run.model, None, run.posterior.layout.keys), []
    for draw in predictor._logits._blocks.first(1):
        weights.write(run.posterior.layout.unflatten(draw))
        with torch.no_grad():
            expected.append(weights.model(pixel_values=run.pixels).logits)
    packed = predictor.logits({"pixel_values": run.pixels})
    assert predictor._logits.sampler.obstacle is None
    torch.testing.assert_close(packed, torch.stack(expected), rtol=0, atol=1e-4)
    mean = torch.stack(expected).double().softmax(-1).mean(0).numpy()
    for row, ranking in zip(mean, classify(images(), num_samples=3), strict=True):
        assert [one["score"] for one in ranking] == pytest.approx(sorted(row, reverse=True), abs=1e-5)
        assert [one["label"] for one in ranking] == [NAMES[index] for index in np.argsort(-row)]
        assert ranking[0]["mutual_information"] > 0 and ranking[0]["entropy"] > ranking[0]["mutual_information"]
    tokens = predictor.task.tokens({"pixel_values": run.pixels}, run.model)
    assert tokens == len(run.pixels) * (4 + 1)  # patches of 8 x 8 in 16 x 16, and the class


def test_the_image_processor_is_the_one_beside_the_adapter_else_that_of_the_base(run, classify, tmp_path):
    # Red for: images that are scaled in another way than in training, or an image processor that is not saved.
    dark = pipeline(TASK, model=str(run.folder / "lively"), image_processor=processor_of(rescale_factor=1e-3), device="cpu")
    dark.save_pretrained(tmp_path)
    again = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert again.image_processor.rescale_factor == pytest.approx(1e-3)
    assert classify.image_processor.rescale_factor == pytest.approx(1 / 255)
    image = images(1)[0]
    assert again(image) == dark(image) != classify(image)
    (tmp_path / "preprocessor_config.json").write_text('{"auto_map": {"AutoImageProcessor": "theirs.Run"}')
    with pytest.raises(SwagError, match="preprocessor_config.json' is not valid JSON"):
        pipeline(TASK, model=str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": {"height": 200_000, "width": 200_000}}, "'size' with 200000; at most 4096 pixels"),
        ({"crop_size": 30_000}, "at most 4096 pixels"),
        ({"image_std": [0, 0, 0]}, "NaN or infinite pixels"),
        ({"image_mean": "abc"}, "cannot be processed .*preprocessor_config.json'"),
        ({"size": {"height": -1, "width": -1}}, "cannot be processed"),
        ({"resample": 99}, "cannot be processed"),
        ({"preprocess": 1}, "cannot be processed"),
        ({"image_processor_type": "Theirs", "auto_map": {"AutoImageProcessor": "theirs.Run"}}, "cannot be loaded"),
    ],
)
def test_settings_of_an_image_processor_that_make_no_image_are_refused_when_it_is_loaded(changes, words, tmp_path):
    # Red for: 480 GB for an image of 200,000 x 200,000 pixels; other errors than ours at the first image.
    processor_of().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SwagError, match=words):
        load_image_processor(tmp_path)


def test_what_lies_in_the_place_of_the_image_processor_and_is_no_file_is_refused(run, tmp_path):
    # Red for: the base model's image processor, silently, where the adapter's is a pipe or a broken link.
    shutil.copytree(run.folder / "lively", tmp_path / "odd")
    place = tmp_path / "odd" / "preprocessor_config.json"
    for make in (lambda: os.mkfifo(place), lambda: place.symlink_to("/dev/zero"), lambda: place.symlink_to("/gone")):
        place.unlink(missing_ok=True)
        make()
        with pytest.raises(SwagError, match="preprocessor_config.json'"):
            pipeline(TASK, model=str(tmp_path / "odd"), device="cpu")


def test_an_unreliable_prediction_is_withheld_and_what_does_not_apply_is_refused(run, classify):
    # Red for: an option that is taken and not used, a tokenizer in the place of an image processor, an AttributeError of neither.
    image = images(1)[0]
    withheld = classify(image, abstain_below=1.0)[0]
    assert withheld["label"] is None and withheld["top_label"] == classify(image)[0]["label"]
    with pytest.raises(SwagError, match="judged label by label"):
        classify(image, abstain_below=0.5, function_to_apply="sigmoid")
    with pytest.raises(SwagError, match="top_k must be a whole number"):
        classify(image, top_k=0)
    with pytest.raises(SwagError, match=r"no argument 'topk'\. Did you mean 'top_k'"):
        classify(image, topk=1)
    arguments = {"model": run.model, "device": "cpu"}
    with pytest.raises(SwagError, match="pass image_processor="):
        SwagImageClassificationPipeline(posterior=run.posterior, **arguments)
    with pytest.raises(SwagError, match="and no tokenizer"):
        pipeline(TASK, posterior=run.posterior, image_processor=processor_of(), tokenizer=object(), **arguments)
    with pytest.raises(PosteriorNotFoundError):
        pipeline(TASK, image_processor=processor_of(), **arguments)
    texts = replace(run.posterior, record=replace(run.posterior.record, task="swag-text-classification"))
    with pytest.raises(SwagError, match="is for the task 'swag-text-classification'"):
        pipeline(TASK, posterior=texts, image_processor=processor_of(), **arguments)


def test_record_and_card_say_that_it_is_for_images(run):
    # Red for: a posterior of a ViT that is taken for a text classifier's, a card with another tag or another example.
    record = run.made.record
    assert (record.task, record.labels) == (TASK, NAMES) and task_for(record).name == TASK
    card = build_card(run.made, repo_id="user/vit")
    assert card.data.pipeline_tag == "image-classification"
    text = str(card)
    assert 'classify("image.png")' in text and "An image classifier" in text
    assert "AutoImageProcessor.from_pretrained" in text and "tokenizer" not in text


@pytest.mark.filterwarnings("ignore:On 24 examples", "ignore:Prediction sets")
def test_tuning_measuring_and_fitting_take_images_as_the_trainer_does(run):
    # Red for: a tuning that asks for input_ids, features that are not found in a vision model, a head that laplace-head refuses.
    pixels = processor_of()(images=images(24), return_tensors="pt")["pixel_values"]
    rows = [{"pixel_values": image, "labels": index % 3} for index, image in enumerate(pixels)]
    tuned = tune(run.posterior, run.model, rows, sampling=Sampling(num_samples=2), progress=False)
    classify = pipeline(TASK, model=run.model, posterior=tuned, image_processor=processor_of(), device="cpu")
    found = classify(images(1)[0], prediction_set=0.8)[0]
    assert set(found["prediction_set"]) <= set(NAMES) and 0 <= found["ood_score"] < 1
    predicted = predict_methods(run.model, run.posterior, rows, methods=["SWA", "SWAG"], progress=False)
    assert {name: each.probabilities.shape for name, each in predicted.items()} == {"SWA": (24, 3), "SWAG": (24, 3)}
    fitted = fit_posterior(run.model, rows, method="laplace-head", progress=False)
    assert (fitted.kind, fitted.record.task) == ("kronecker", TASK)
