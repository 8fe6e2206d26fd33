"""Metadata of a model card, the YAML at its top, and evaluation results in the form that the Hub shows and ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hub_cards.markdown import plain_text
from swag_trainer import WeightPosterior
from swag_trainer.evaluation.card_results import CardResults

EVAL_RESULTS = ".eval_results/swag_trainer.yaml"
_TAGS = ["swag-lora", "lora", "uncertainty"]  # "swag" alone is a data set (Situations With Adversarial Generations)
_OUR_ARGUMENTS = {"method", "num_bins", "num_samples", "seed"}
# Metrics that https://huggingface.co/metrics defines as we do, and what it calls them.
_HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "f1": "f1", "matthews_correlation": "matthews_correlation"}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def is_hub_id(text: Any) -> bool:
    """Can this be the id of a repository on the Hub?"""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    # validate_repo_id lets None pass, and in huggingface_hub 1 a newline after the id.
    return isinstance(text, str) and not text.endswith("\n")


def given_metadata(
    license: str | None = None, language: str | Sequence[str] | None = None, datasets: str | Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what only the author of a card knows, as metadata; what is not given is left out.

    Raises:
        ValueError: The Hub would refuse one of them.
    """
    languages, names = _listed(language), _listed(datasets)
    if license is not None and not _LICENSE.fullmatch(license):
        raise ValueError(
            f"license={license!r} is not an identifier of https://huggingface.co/docs/hub/repositories-licenses such as 'apache-2.0', "
            "which are in lower case."
        )
    for code in languages:
        if not _LANGUAGE.fullmatch(code):
            raise ValueError(f"language={code!r} is not an ISO 639 code of two or three letters such as 'en'.")
    for name in names:
        if not is_hub_id(name):
            raise ValueError(f"datasets={name!r} is not the id of a data set on the Hub, such as 'user/name'.")
    found = {"license": license, "language": languages, "datasets": names}
    return {name: value for name, value in found.items() if value}


def metadata(
    posterior: WeightPosterior,
    results: CardResults | None,
    *,
    name: str,
    base_model: str | None,
    task: str,
    given: Mapping[str, Any],
) -> ModelCardData:
    """Return the metadata of a posterior's card.

    Metrics go into the model-index where the data set is on the Hub: its entries need the id of one, and the Hub's clients refuse a card
    with an entry without. Of any other data set they stand in the card's table only.

    Args:
        posterior: Whose card.
        results: Its metrics, if there are any.
        name: Of the model.
        base_model: Id of the base model on the Hub, if it is there.
        task: Tag of the task on the Hub.
        given: What `given_metadata` returned.
    """
    found = {} if results is None else results.metrics.get(posterior.title, {})
    measured = {metric: value for metric, value in found.items() if value is not None}
    tuning = posterior.tuning
    datasets = list(given.get("datasets", []))
    if tuning is not None and (tuned_on := _hub_dataset(tuning.dataset, tuning.revision)) is not None:
        datasets.append(tuned_on[0])
    evaluations = [] if results is None else _evaluations(results, measured, method=posterior.title, task=task)
    known = [hub_metric for metric in measured if (hub_metric := _hub_metric(metric)) is not None]
    return ModelCardData(
        license=given.get("license"),
        language=given.get("language"),
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=list(dict.fromkeys(known)) or None,
        library_name="peft",
        base_model=base_model,
        base_model_relation=base_model and "adapter",
        pipeline_tag=task,
        tags=list(_TAGS),
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )


def is_ours(metric: dict[str, Any]) -> bool:
    """Is this a metric that `hub_cards.build_card` put into the metadata?"""
    arguments = metric.get("args")
    return isinstance(arguments, dict) and _OUR_ARGUMENTS <= set(arguments)


def eval_results_file(card: ModelCard) -> bytes | None:
    """Return the file ``.eval_results/swag_trainer.yaml`` of a card; None where there is nothing to put into it.

    The Hub ranks one value for each task of a data set: the accuracy of the posterior's method. What else was measured stands in the card
    and its model-index.
    """
    entries = [
        EvalResultEntry(
            dataset_id=entry.dataset_type,
            task_id=entry.dataset_config or "default",
            value=entry.metric_value,
            dataset_revision=entry.dataset_revision,
            notes=_circumstances(entry),
        )
        for entry in getattr(card.data, "eval_results", None) or []
        if entry.metric_type == "accuracy" and is_ours({"args": entry.metric_args}) and is_hub_id(entry.dataset_type)
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False).encode() if entries else None


def _circumstances(entry: EvalResult) -> str:
    arguments = entry.metric_args or {}
    number = (entry.dataset_args or {}).get("num_examples")
    return (
        f"accuracy of {arguments['method']}, split {entry.dataset_split}, {number} examples, {arguments['num_samples']} draws of seed "
        f"{arguments['seed']}"
    )


def _evaluations(results: CardResults, measured: Mapping[str, float], *, method: str, task: str) -> list[EvalResult]:
    dataset = _hub_dataset(results.dataset, results.revision)
    if dataset is None:
        return []
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset[0],
            dataset_config=dataset[1] and plain_text(dataset[1]),
            dataset_name=plain_text(results.dataset),
            dataset_split=plain_text(results.split),
            dataset_revision=results.revision and plain_text(results.revision),
            dataset_args={"num_examples": results.num_examples},
            metric_type=_hub_metric(metric) or plain_text(metric).lower(),
            metric_name=plain_text(metric),
            metric_value=value,
            # "method" is also how a later card knows the entries that it replaces: see `is_ours`.
            metric_args={
                "method": method,
                "num_bins": results.num_bins,
                "num_samples": results.num_samples,
                "seed": results.seed,
            },
        )
        for metric, value in measured.items()
    ]


def _hub_dataset(name: str, revision: str | None) -> tuple[str, str | None] | None:
    """Return id and configuration of a data set that was loaded from the Hub, which is known by its commit; None for any other."""
    dataset, _, config = name.partition(":")
    return (dataset, config or None) if revision is not None and is_hub_id(dataset) else None


def _hub_metric(metric: str) -> str | None:
    spelt = metric.lower()
    return "roc_auc" if spelt.startswith("auroc") else _HUB_METRICS.get(spelt)


def _listed(values: str | Iterable[str] | None) -> list[str]:
    return [values] if isinstance(values, str) else list(values or ())
