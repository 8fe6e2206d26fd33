"""Make a posterior of an adapter that was trained without one, from labelled text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TextIO

from swag_trainer.cli.any_classifier import load_any_classifier, posterior_of
from swag_trainer.cli.classifier import tokenised
from swag_trainer.cli.devices import DeviceOptions
from swag_trainer.cli.files import prepared_outputs
from swag_trainer.cli.options import ClassifierOptions, TextOptions
from swag_trainer.cli.text_data import LabelledText, read_text
from swag_trainer.errors import SwagError
from swag_trainer.fitting.fit import FitMethod, fit_posterior
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.prediction.sampler import Sampling


@dataclass(frozen=True, kw_only=True)
class Options(ClassifierOptions, TextOptions, DeviceOptions):
    """As `swag_trainer.fit_posterior`."""

    counts: ClassVar[tuple[str, ...]] = ("num_samples", "batch_size")

    output: str = field(metadata={"help": "folder for posterior, adapter and tokenizer"})
    method: FitMethod = field(
        default="tfb",
        metadata={"help": "noise on LoRA's A as large as the loss allows, a Gaussian over the head, or one over LoRA and head"},
    )
    split: str = field(default="train", metadata={"help": "examples to fit to; those of training serve"})
    held_out_split: str = field(
        default="validation",
        metadata={"help": "examples by which 'laplace' and 'laplace-head' choose their prior; none may have been trained on"},
    )
    labels: list[str] | None = field(default=None, metadata={"help": "names of the classes in the order of the logits"})
    epsilon: float | None = field(default=None, metadata={"help": "how much 'tfb' may raise the NLL, in nats"})
    prior_precision: float | None = field(
        default=None,
        metadata={"help": "of 'laplace' and 'laplace-head'; default: that of the lowest NLL of --held-out-split"},
    )
    num_samples: int = field(default=10, metadata={"help": "draws by which 'tfb' and 'laplace' estimate the NLL"})
    seed: int = field(default=0, metadata={"help": "of these draws"})
    batch_size: int = field(default=32, metadata={"help": "examples per forward"})
    overwrite: bool = field(default=False, metadata={"help": "replace a posterior that is in the folder already"})


def run(options: Options, out: TextIO) -> None:
    """Fit, save, and print what was found.

    Raises:
        SwagError: The data or the adapter cannot be used, or the folder has a posterior already.
    """
    with prepared_outputs(posteriors=[options.output], overwrite=options.overwrite):
        posterior = _fitted(options, Path(options.output))
    found = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in _shown(posterior.summary()).items())
    out.write(f"{options.output}: {posterior.title} over {posterior.layout.size} weights. {found}\n")


def _fitted(options: Options, folder: Path) -> WeightPosterior:
    data = read_text(options, options.split)
    loaded = load_any_classifier(options, posterior_of(options), device=options.device)
    if not hasattr(loaded.model, "peft_config"):
        raise SwagError(f"{options.model!r} has no adapter: 'fit' makes a posterior of a PEFT adapter.")
    chooses = options.method != "tfb" and options.prior_precision is None
    held_out = read_text(options, options.held_out_split) if chooses else None
    classifier = loaded.named(options.labels, [data])
    model, classes = classifier.model, classifier.classes
    # The names go into the posterior's record; adapter_config.json has no place for them.
    model.get_base_model().config.id2label = dict(enumerate(classes))
    settings = {"epsilon": options.epsilon, "prior_precision": options.prior_precision}

    def examples(part: LabelledText) -> list[dict[str, Any]]:
        return tokenised(classifier.tokenizer, model, part.texts, part.numbers(classes))

    posterior = fit_posterior(
        model,
        examples(data),
        method=options.method,
        held_out=None if held_out is None else examples(held_out),
        sampling=Sampling(num_samples=options.num_samples, seed=options.seed),
        name=data.name,
        split=data.split,
        revision=data.revision,
        batch_size=options.batch_size,
        **{name: value for name, value in settings.items() if value is not None},
    )
    posterior.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    return posterior


def _shown(summary: dict[str, object]) -> dict[str, str]:
    numbers = {name: value for name, value in summary.items() if isinstance(value, float)}
    return {name: f"{value:.4g}" for name, value in numbers.items()}
