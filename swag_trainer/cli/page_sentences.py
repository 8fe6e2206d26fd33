"""Sentences of the page of `swag-trainer serve`: the decision, the uncertainty, and where the predictions come from."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath

from swag_trainer.cli.page_predictions import PagePredictions, TextPredictions
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.tuning import CENTER_NAMES
from swag_trainer.prediction.decisions import Decision, confidence

# Below these the draws agree and nothing is uncertain, in nats.
_NO_DISAGREEMENT, _NO_UNCERTAINTY = 0.02, 0.1
_SOME_VOTES = 0.2  # up to this fraction of the draws, those that put another class first are some of them


def verdict(predictions: TextPredictions, decision: Decision) -> str:
    """Describe whether the label is given or the text is deferred to a human, and why."""
    names = dict(enumerate(predictions.labels))
    best = predictions.likeliest(1)[0]
    score = float(confidence(predictions.probabilities[None])[0])
    row = decision.apply([{"label": names[best], "score": score}], predictions.probabilities, names)[0]
    if row["label"] is None:
        return f"Defer to a human. {row['reason']} (The likeliest label is {row['top_label']}.)"
    if not decision.reason:
        return f"Label: {row['label']}. Its score is {score:.3f}; with a threshold of 0 every text gets a label."
    return f"Label: {row['label']}. Its score {score:.3f} is not below {decision.threshold:.3f}, {decision.reason}."


def uncertainty(predictions: TextPredictions) -> str:
    """Describe entropy and mutual information, with their values in nats, and how many draws prefer another class."""
    entropy, information = float(predictions.averaged.entropy[0]), float(predictions.averaged.mutual_information[0])
    most, count = math.log(len(predictions.labels)), len(predictions.draws)
    lines = [
        f"Entropy {entropy:.3f} nats, of {most:.3f} at most for {len(predictions.labels)} classes: as uncertain as an even choice between "
        f"{math.exp(entropy):.1f} classes."
    ]
    if count == 1:
        return lines[0] + "\nThis is the prediction of a single set of weights (scale 0): there is no disagreement to measure."
    votes = int((predictions.draws.argmax(axis=1) != predictions.likeliest(1)[0]).sum())
    fraction = information / entropy if entropy > 0 else 0.0
    lines.append(
        f"Mutual information {information:.3f} nats, {fraction:.0%} of the entropy: {disagreement(entropy, information, votes / count)}."
    )
    lines.append(f"{votes} of {count} draws put another class first.")
    return "\n".join(lines)


def disagreement(entropy: float, mutual_information: float, votes: float) -> str:
    """Describe how far the draws disagree.

    Args:
        entropy: Of the averaged probabilities, in nats.
        mutual_information: In nats.
        votes: Fraction of the draws that put another class first than their average.
    """
    if mutual_information < _NO_DISAGREEMENT:
        if votes > 0:
            return "the draws hardly differ, but the likeliest classes are so close that the first place changes"
        return "the draws agree" + ("; the uncertainty lies in the text" if entropy >= _NO_UNCERTAINTY else "")
    if votes == 0:
        return "the draws agree on the label and differ in its probability"
    if votes <= _SOME_VOTES:
        return "most draws agree on the label, some prefer another"
    return "the draws disagree about the label; more training data could reduce the uncertainty"


def circumstances(page: PagePredictions, name: str) -> str:
    """Describe what the predictions come from: the model, the draws, and the data of the tuning. No path of the machine is shown."""
    posterior, sampling = page.posterior, page.sampling
    base = posterior.adapter.base_model
    lines = [
        f"{without_path(name)}, on {'a base model without a name' if not base else without_path(base)}",
        f"{sampling.num_samples} draws (seed {sampling.seed}) of {_source(posterior)}; "
        f"around the {CENTER_NAMES[sampling.center or 'mean']}{', with dropout' if sampling.dropout else ''}; scale {sampling.scale:g}, "
        f"temperature {sampling.temperature:.3g}",
    ]
    tuning = posterior.tuning
    if tuning is None:
        lines.append("Not tuned on held-out data: scores are not calibrated, and a threshold guarantees nothing.")
    else:
        data = " ".join(filter(None, [repr(without_path(tuning.dataset)), tuning.split]))
        others = "by cross-fitting" if tuning.num_folds else f"on {tuning.num_calibration} others"
        lines.append(f"Tuned on {tuning.num_examples} examples of {data}, thresholds {others}.")
    if page.thresholds.reason:
        lines.append(page.thresholds.reason)
    if not page.thresholds.offered:
        lines.append("The slider starts at 0, and nothing is deferred.")
    return "\n".join(lines)


def without_path(name: str) -> str:
    """Return the last part of a path of this machine, and any other name as it is.

    >>> without_path("/srv/models/bert"), without_path("FacebookAI/roberta-base")
    ('bert', 'FacebookAI/roberta-base')
    """
    is_path = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or name.startswith(("~", "."))
    if not is_path and not Path(name).exists():
        return name
    path = PureWindowsPath(name) if PureWindowsPath(name).is_absolute() else Path(name)
    return path.name or Path(name).resolve().name


def _source(posterior: WeightPosterior) -> str:
    snapshots, rank = posterior.metadata().get("num_collected"), getattr(posterior, "rank", None)
    if snapshots is None or rank is None:
        return f"a posterior of kind {posterior.kind!r}"
    return f"{snapshots} snapshots, rank {rank}"
