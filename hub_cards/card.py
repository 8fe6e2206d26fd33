"""build_card: the model card (README.md) of a posterior, from its record and from measured metrics. Nothing is measured here."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from hub_cards.glossary import methods_explained, metrics_explained
from hub_cards.identity import identity, risk_to_show
from hub_cards.markdown import description, inline_markdown, listed
from hub_cards.marks import marked
from hub_cards.metadata import given_metadata, is_hub_id, metadata
from hub_cards.plain_peft import plain_peft_example
from swag_trainer import WeightPosterior
from swag_trainer.evaluation.card_results import CardResults
from swag_trainer.evaluation.comparison import NLL, OOD_DETECTION, strongest
from swag_trainer.evaluation.names import DETECTION_METRICS, DETECTION_SCORES, METRIC_NAMES, detection
from swag_trainer.tasks import task_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROJECT = "https://pypi.org/project/swag-trainer/"
_PLOT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*\.png")


def build_card(
    posterior: WeightPosterior,
    results: CardResults | None = None,
    *,
    repo_id: str | None = None,
    plots: Sequence[str] | Mapping[str, Figure | str] = (),
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
) -> ModelCard:
    """Write the model card of a posterior.

    Names of labels, data sets, metrics and the like are untrusted input: in the text they are shown letter for letter and
    are never Markdown, HTML or a template; control and bidirectional characters are dropped, long ones cut.

    All but the title stands between two marks (HTML comments), so that `hub_cards.merge_card` and `hub_cards.publish_card` can put
    it into a README.md with text of its own, and replace it there.

    Args:
        posterior: Whose card; of any family.
        results: Metrics measured before; those of the posterior's own method ("SWAG", or the family's ``title``) go into the metadata too,
            where the data set is one of the Hub: ``dataset`` is its id, or "id:configuration", and ``revision`` its commit.
        repo_id: "user/name" on the Hub, for the title and the example.
        plots: Paths of PNG files inside the repository; or, by these paths, the figures as given to `hub_cards.publish_card`, whose
            descriptions (``figure.get_label()``) become the alternative texts, or such descriptions themselves.
        license: Of the adapter, as the Hub spells it, such as "apache-2.0"; for the metadata, as are the next two.
        language: ISO 639 code of the texts, such as "en", or several.
        datasets: Ids on the Hub of what it was trained on. One that it was tuned on is added.

    Returns:
        The card; ``str(card)`` is README.md.

    Raises:
        ValueError: ``repo_id``, the license, a language or a data set is none that the Hub takes, a plot is not the path of a PNG file inside a repository, or the metrics are of the
            posterior at another scale than its own.
    """
    if repo_id is not None and not is_hub_id(repo_id):
        raise ValueError(f"build_card(repo_id=...) is the id of a repository on the Hub, such as 'user/name', got {repo_id!r}.")
    if results and results.scale is not None and posterior.title in results.metrics and results.scale != posterior.scale:
        raise ValueError(
            f"The metrics of {posterior.title!r} were measured at scale {results.scale:g}, the posterior's own is {posterior.scale:g}: a card "
            "of both would promise what was not measured. Measure again, or take posterior.with_scale(...)."
        )
    task, summary = task_named(posterior.record.task), posterior.summary()
    name = "swag-lora" if repo_id is None else repo_id.rpartition("/")[2]
    record = posterior.record
    base_model = posterior.adapter.base_model
    # An id with a folder of that name here is the folder, as for from_pretrained, unless a commit shows that it was not.
    if not is_hub_id(base_model) or (record.base_revision is None and Path(base_model).exists()):
        base_model = None
    body = _template().render(
        model=Markup(repo_id or "user/repo"),
        num_samples=results.num_samples if results else 10,
        seed=results.seed if results else 0,
        risk=_code(risk_to_show(posterior)),
        num_weights=posterior.layout.size,
        holds_mean=posterior.adapter_holds_mean,
        base_model=base_model,
        record=record,
        kind=posterior.kind,
        method=posterior.title,
        project=Markup(_PROJECT),
        plain_example=plain_peft_example(posterior, repo_id=repo_id or "user/repo", base_model=base_model),
        explained=_explained(results),
        task=Markup(task.name),
        task_tag=Markup(task.hub_tag),
        summary=summary,
        scale=posterior.scale,
        relative_energy=posterior.relative_energy(),
        diagnostics=listed(
            f"{key.replace('_', ' ')} {value:.2f}" for key, value in sorted(summary.get("diagnostics", {}).items())
        ),
        versions=_versions(record.versions),
        labels=listed(record.labels or ()),
        tuning=posterior.tuning,
        results=results,
        metric_tables=_metric_tables(results) if results else [],
        costs=_costs(results) if results else [],
        verdicts=_verdicts(results) if results else [],
        differences=[each for each in results.comparisons if each.metric == NLL] if results else [],
        measured_with=_versions(results.versions if results else {}),
        plots=[(Markup(checked_plot(path)), _alternative_text(plots, path)) for path in plots],
    )
    data = metadata(
        posterior,
        results,
        name=name,
        base_model=base_model,
        task=task.hub_tag,
        given=given_metadata(license, language, datasets),
    )
    title = name if repo_id else f"{posterior.title} posterior over a LoRA adapter"
    text = f"# {title}\n\n{marked(body, identity(posterior))}"
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def checked_plot(path: str) -> str:
    """Return ``path`` if it can name a PNG file inside a repository.

    Raises:
        ValueError: It is absolute, leaves the repository, is not a PNG, or has characters that a link would need to have quoted.
    """
    if not isinstance(path, str) or not _PLOT.fullmatch(path):
        raise ValueError(f"A plot is a path inside the repository such as 'reliability.png' or 'plots/swag.png', got {path!r}.")
    return path


@functools.cache
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


def _explained(results: CardResults | None) -> list[tuple[str, Markup]]:
    """Return the names in the table that need a word of explanation, with their meaning."""
    if results is None:
        return []
    explained = methods_explained(results.metrics) | metrics_explained(next(iter(results.metrics.values())))
    return [(name, Markup(meaning)) for name, meaning in explained.items()]


def _code(number: float | None) -> Markup | None:
    """Every digit, where a rounded one would be another threshold."""
    return None if number is None else Markup(repr(number))


def _metric_tables(results: CardResults) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the tables of metrics: the caption of each, and the metric and the heading of each column."""
    measured = list(next(iter(results.metrics.values())))
    tables = [("", [(metric, METRIC_NAMES.get(metric, metric)) for metric in measured if detection(metric) is None])]
    for kind, name in DETECTION_METRICS.items():
        columns = [
            (metric, DETECTION_SCORES[found[1]]) for metric in measured if (found := detection(metric)) and found[0] == kind
        ]
        tables.append((f"{name} of detecting out-of-distribution (OOD) examples by:", columns))
    return [(caption, columns) for caption, columns in tables if columns]


def _costs(results: CardResults) -> list[tuple[str, Mapping[str, float], Markup]]:
    """Return the columns of what each method costs: heading, values by method, and what stands where there is none."""
    columns = [
        ("trainings", results.num_trainings, Markup("-")),
        ("seconds to fit", results.fit_seconds, Markup("-")),
        ("seconds per example", results.seconds_per_example, Markup("not measured")),
    ]
    return [column for column in columns if column[1]]


def _verdicts(results: CardResults) -> list[Markup]:
    """Return a sentence about the strongest other method, and one about the detection of OOD examples."""
    comparisons = [strongest(results.comparisons), *(each for each in results.comparisons if each.metric == OOD_DETECTION)]
    return [Markup(each.sentence(inline_markdown)) for each in comparisons if each is not None]


def _versions(versions: Mapping[str, str]) -> Markup:
    return listed(f"{library} {version}" for library, version in sorted(versions.items()))


def _alternative_text(plots: Sequence[str] | Mapping[str, Figure | str], path: str) -> Markup:
    text = plots[path] if isinstance(plots, Mapping) else ""
    if not isinstance(text, str):
        text = text.get_label()
    return description(text) if text else Markup("Figure")
