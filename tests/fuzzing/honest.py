"""Small honest folders of every kind of posterior, made without training: what the fuzzer begins with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    set_seed,
)

from swag_trainer import PointPosterior, PosteriorMixture, SwagPosterior
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.coefficients import CoefficientPosterior
from swag_trainer.posterior.features import fit
from swag_trainer.posterior.fit_record import FitRecord
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.kronecker import KroneckerPosterior
from swag_trainer.posterior.kronecker_block import KroneckerBlock
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.mean_field import MeanFieldPosterior
from swag_trainer.posterior.nola import Nola, NolaMap
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.swag import SwagRecord
from swag_trainer.posterior.tuning import CalibratedThreshold, Candidate, ConformalQuantile, Tuning

WORDS = "a the film was good bad slow bright dull funny sad long short great poor plot cast end".split()
TEXTS = ["good film", "the plot was dull and slow", "bad"]
LABELS = ["negative", "neutral", "positive"]
_SIZE = 16


def save_base(folder: Path) -> Path:
    """Write a tiny BERT classifier and its tokenizer."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizerFast(vocab=vocabulary, model_max_length=32).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=_SIZE,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=_SIZE,
        max_position_embeddings=32,
        num_labels=len(LABELS),
        problem_type="single_label_classification",
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def adapted(base: Path) -> PeftModel:
    """A LoRA classifier on a base, with weights that are not zero."""
    set_seed(0)
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base),
        LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"]),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model


def posteriors(base: Path) -> dict[str, WeightPosterior]:
    """One posterior of every kind on a base, by name; "plain" is a SWAG posterior to be saved in float32."""
    saved = AdapterWeights(adapted(base)).saved()
    layout = WeightLayout.of(saved.tensors)
    generator = torch.Generator().manual_seed(0)
    mean = layout.flatten(saved.tensors)
    record = PosteriorRecord(
        base_model=saved.base_model,
        task="swag-text-classification",
        labels=LABELS,
        problem_type="single_label_classification",
        pad_token_id=0,
        versions={"torch": "2"},
    )
    swag = _swag(layout, mean, record, saved, generator)
    tuned = swag.with_features(_features(generator)).with_tuning(_tuning(), scale=0.5)
    head = {key: saved.tensors[key] for key in saved.tensors if "classifier" in key}
    fitted = FitRecord("tfb", "me/texts", "train", None, 40, {"epsilon": 0.01})
    return {
        "swag": tuned,
        "plain": swag,
        "point": PointPosterior.at(mean, swag),
        "mean-field": MeanFieldPosterior(
            layout, mean, torch.rand(layout.size, generator=generator) / 9, replace(record), fitted, saved
        ),
        "coefficients": _coefficients(saved, record, generator),
        "kronecker": _kronecker(head, record, saved, generator),
        "mixture": PosteriorMixture.of([swag, PointPosterior.at(mean + 0.1, swag), tuned], [0.5, 0.3, 0.2]),
    }


def save(posterior: WeightPosterior, folder: Path, name: str, base: Path) -> Path:
    """Write a posterior's folder with everything that lies in a repository: tokenizer, card, config.json."""
    from hub_cards import build_card

    posterior.save_pretrained(folder, dtype="float32" if name == "plain" else "bfloat16")
    BertTokenizerFast.from_pretrained(base).save_pretrained(folder)
    (folder / "README.md").write_text(str(build_card(posterior, repo_id="user/fuzzed")))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": _SIZE}))
    return folder


def _swag(
    layout: WeightLayout, mean: torch.Tensor, record: PosteriorRecord, saved: SavedAdapter, generator: torch.Generator
) -> SwagPosterior:
    gaussian = LowRankGaussian(
        mean,
        torch.rand(layout.size, generator=generator) / 9,
        torch.randn(3, layout.size, generator=generator) / 9,
    )
    steps: dict[str, Any] = {"steps": [2, 4, 6, 8, 10], "learning_rates": [1e-2] * 5, "deviation_norms": [1.0] * 5}
    return SwagPosterior(layout, gaussian, record, SwagRecord(5, "Every(steps=2)", 2, 10, **steps), saved)


def _coefficients(saved: SavedAdapter, record: PosteriorRecord, generator: torch.Generator) -> CoefficientPosterior:
    """Six coefficients for each LoRA matrix, and a head without."""
    lora = WeightLayout.of({key: tensor for key, tensor in saved.tensors.items() if "lora_" in key})
    mapping = NolaMap(lora, Nola(6, seed=2))
    shapes = {key: tensor.shape for key, tensor in saved.tensors.items() if "lora_" not in key}
    shapes |= {key.replace(".weight", ".coefficients"): (1, 6) for key in lora.keys}
    layout = WeightLayout.of({key: torch.empty(shape) for key, shape in shapes.items()})
    swag = _swag(layout, torch.randn(layout.size, generator=generator), record, saved, generator)
    posterior = CoefficientPosterior.of(swag, mapping)
    return replace(posterior, adapter=saved.with_weights(posterior.mean))


def _kronecker(
    head: dict[str, torch.Tensor], record: PosteriorRecord, saved: SavedAdapter, generator: torch.Generator
) -> KroneckerPosterior:
    layout = WeightLayout.of(head)
    inputs = _SIZE + (1 if len(head) == 2 else 0)
    factors = []
    for size in (len(LABELS), inputs):
        root = torch.randn(size, size, generator=generator)
        values, vectors = torch.linalg.eigh(root @ root.T)
        factors += [vectors.contiguous(), values.clamp_min(0)]
    fitted = FitRecord("laplace-head", "me/texts", "train", None, 40, {"prior_precision": 2.0})
    return KroneckerPosterior(layout, layout.flatten(head), (KroneckerBlock(*factors),), record, fitted, saved)


def _features(generator: torch.Generator) -> Any:
    labels = torch.arange(40) % len(LABELS)
    points = torch.randn(40, _SIZE, generator=generator) + labels[:, None]
    return fit(points, labels).with_held_out([0.5, 1.0, 1.5, 2.0])


def _tuning() -> Tuning:
    return Tuning(
        temperature=1.25,
        dataset="me/texts",
        num_examples=60,
        num_calibration=60,
        num_samples=4,
        seed=3,
        nll=0.5,
        candidates=[Candidate("mean", 0.5, False, 1.25, 0.5)],
        baselines={"SWA": 0.6},
        thresholds=[CalibratedThreshold("risk", 0.1, 0.7, 0.8, 0.09)],
        conformal=[ConformalQuantile("lac", 0.9, 0.4, 1.5)],
    )
