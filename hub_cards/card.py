"""build_card: a posterior and measured figures -> the text of README.md. It prints what is on record and finds out nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from hub_cards.results import CardResults
from swag_trainer import SwagPosterior

_TASK = "text-classification"
_TAGS = ["swag-lora", "lora", "uncertainty"]  # "swag" alone is a data set (Situations With Adversarial Generations)
_LONGEST_TEXT = 200
_MOST_ITEMS = 100
_JOINERS = "\u200c\u200d"  # invisible, but words of Persian and Hindi, and many emoji, are spelt with them
_HARMLESS = re.compile(r"[^\W_]+([ +%-][^\W_]+)*")
_PLOT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*\.png")


def build_card(
    posterior: SwagPosterior, results: CardResults | None = None, *, repo_id: str | None = None, plots: Sequence[str] = ()
) -> ModelCard:
    """Write the model card of a posterior.

    Names of labels, data sets, metrics and the like are data of strangers: in the text they are shown letter for letter and
    are never Markdown, HTML or a template; control and bidirectional characters are dropped, long ones cut.

    Args:
        posterior: Whose card.
        results: Figures measured before; those of the method "SWAG" go into the metadata too.
        repo_id: "user/name" on the Hub, for the title and the example.
        plots: Paths of PNG files inside the repository, as given to `hub_cards.publish_card`.

    Returns:
        The card; ``str(card)`` is README.md.

    Raises:
        ValueError: ``repo_id`` is no id, or a plot no path of a PNG file inside a repository.
    """
    if repo_id is not None and not _is_hub_id(repo_id):
        raise ValueError(f"build_card(repo_id=...) is the id of a repository on the Hub, such as 'user/name', got {repo_id!r}.")
    name = "swag-lora" if repo_id is None else repo_id.rpartition("/")[2]
    record = posterior.provenance
    base_model = posterior.adapter.base_model
    # An id with a folder of that name here is the folder, as for from_pretrained, unless a commit shows that it was not.
    if not _is_hub_id(base_model) or (record.base_revision is None and Path(base_model).exists()):
        base_model = None
    body = _template().render(
        title=Markup(name) if repo_id else "SWAG posterior over a LoRA adapter",
        model=Markup(repo_id or "user/repo"),
        num_samples=results.num_samples if results else 10,
        seed=results.seed if results else 0,
        num_weights=posterior.layout.size,
        holds_mean=_adapter_holds_mean(posterior),
        base_model=base_model,
        base_revision=record.base_revision,
        initialisation=record.initialisation,
        num_collected=posterior.num_collected,
        num_skipped=record.num_skipped,
        first_step=record.first_step,
        last_step=record.last_step,
        first_learning_rate=record.first_learning_rate,
        last_learning_rate=record.last_learning_rate,
        schedule=record.schedule,
        rank=posterior.rank,
        scale=posterior.scale,
        versions=_listed(f"{library} {version}" for library, version in sorted(record.versions.items())),
        labels=_listed(record.labels or ()),
        results=results,
        metric_names=list(next(iter(results.metrics.values()))) if results else [],
        plots=[Markup(checked_plot(plot)) for plot in plots],
    )
    return ModelCard(f"---\n{_metadata(name, base_model, results).to_yaml()}\n---\n\n{body}")


def checked_plot(path: str) -> str:
    """Return ``path`` if it can name a PNG file inside a repository.

    Raises:
        ValueError: It is absolute, climbs out, is no PNG, or has characters that a link would need to have quoted.
    """
    if not isinstance(path, str) or not _PLOT.fullmatch(path):
        raise ValueError(f"A plot is a path inside the repository such as 'reliability.png' or 'plots/swag.png', got {path!r}.")
    return path


def plain_text(text: str) -> str:
    """Return ``text`` on one line, at most 200 characters, without control, format and bidirectional characters.

    A lone surrogate, which no file can hold, becomes U+FFFD, and so does a text of which nothing is left.
    """
    kinds = ((character, unicodedata.category(character)) for character in " ".join(text[: 4 * _LONGEST_TEXT].split()))
    kept = "".join(
        "\ufffd" if kind == "Cs" else character
        for character, kind in kinds
        if kind not in ("Cc", "Cf") or character in _JOINERS
    )
    return (kept if len(kept) <= _LONGEST_TEXT else kept[: _LONGEST_TEXT - 1] + "…") or "\ufffd"


def inline_markdown(value: Any) -> Markup:
    """Turn a value into Markdown that shows it and does nothing else, in running text as in a cell of a table.

    Words stay as they are; everything else goes into a code span, where no markup, no entity and no link is looked for. The two
    characters that would end the span or the cell stand between spans, as character references.
    """
    if isinstance(value, Markup):
        return value
    if not isinstance(value, str):
        return Markup(f"{value:.4g}" if isinstance(value, float) else str(value))
    text = plain_text(value)
    if _HARMLESS.fullmatch(text):
        return Markup(text)
    pieces = re.split(r"([|`])", text)
    return Markup("".join(f"&#{ord(piece)};" if piece in ("|", "`") else f"`{piece}`" for piece in pieces if piece))


def _template() -> Template:
    # `finalize` sees every value that the template prints, so none can be forgotten; autoescape stands behind it.
    environment = Environment(
        autoescape=True,
        finalize=inline_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(files("hub_cards").joinpath("template.md").read_text(encoding="utf-8"))


def _metadata(name: str, base_model: str | None, results: CardResults | None) -> ModelCardData:
    evaluations = [
        EvalResult(
            task_type=_TASK,
            dataset_type=plain_text(results.dataset),
            dataset_name=plain_text(results.dataset),
            dataset_split=plain_text(results.split),
            dataset_revision=results.revision and plain_text(results.revision),
            dataset_args={"num_examples": results.num_examples},
            metric_type=plain_text(metric).lower(),
            metric_name=plain_text(metric),
            metric_value=value,
            metric_args={"num_bins": results.num_bins, "num_samples": results.num_samples, "seed": results.seed},
        )
        for metric, value in (results.metrics.get("SWAG", {}) if results else {}).items()
    ]
    return ModelCardData(
        library_name="peft",
        base_model=base_model,
        base_model_relation=base_model and "adapter",
        pipeline_tag=_TASK,
        tags=list(_TAGS),
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )


def _listed(texts: Iterable[str]) -> Markup:
    texts = list(texts)
    more = f" and {len(texts) - _MOST_ITEMS} more" if len(texts) > _MOST_ITEMS else ""
    return Markup(", ").join(inline_markdown(text) for text in texts[:_MOST_ITEMS]) + more


def _adapter_holds_mean(posterior: SwagPosterior) -> bool:
    """SwagCallback(final_weights="trained") leaves other weights in the adapter than the mean."""
    saved = posterior.adapter.tensors
    return all(key in saved and mean.to(saved[key].dtype).equal(saved[key]) for key, mean in posterior.mean.items())


def _is_hub_id(text: Any) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return isinstance(text, str)  # validate_repo_id lets None pass
