"""merge_card: put a generated card into an existing README.md and keep the text and metadata that others wrote."""

from __future__ import annotations

import re
import warnings
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import RepoCard
from huggingface_hub.repocard_data import CardData, model_index_to_eval_results
from yaml import YAMLError

from hub_cards.marks import find_marked
from hub_cards.metadata import is_hub_id, is_ours
from swag_trainer import SwagError

# What Trainer.create_model_card of transformers 5 writes: its comment, a sentence without content, and three empty sections.
_TRAINER_COMMENT = re.compile(
    r"<!-- This model card has been generated automatically according to the information the Trainer had access to\. You\s+"
    r"should probably proofread and complete it, then remove this comment\. -->\s*"
)
_TRAINER_SENTENCE = re.compile(
    r"^This model is a fine-tuned version of \[(.*)\]\(https://huggingface\.co/\1\) on an unknown dataset\.\s*", re.M
)
_EMPTY_SECTION = re.compile(
    r"^## (Model description|Intended uses & limitations|Training and evaluation data)\s+More information needed\s*(?=^#|\Z)",
    re.M,
)
# What PEFT and transformers add to the Hub client's template, which they otherwise leave empty.
_TEMPLATE_ADDITIONS = re.compile(
    r"^### Framework versions\s+- PEFT \S+\s*\Z|^This is the model card of a \S+ transformers model that has been pushed on the Hub\. "
    r"This model card has been automatically generated\.$",
    re.M,
)
_ADAPTER_TAG = "base_model:adapter:"


def merge_card(card: ModelCard, existing: ModelCard | str | None) -> ModelCard:
    """Put a card into a README.md that is there already.

    Only the generated part is replaced: the text between the marks, our tags, the base model, ``library_name`` and ``pipeline_tag``, and in
    the model-index the metrics of the posterior. Everything else stays: text above and below the marks, license, language, data sets, tags,
    other metrics, and any other key. A README.md without marks keeps its text too, with ours below; only what `Trainer` and PEFT
    leave empty in the cards that they generate ("More information needed") gives way to ours.

    Args:
        card: What `hub_cards.build_card` returned. One without marks was written by hand and is returned as it is.
        existing: README.md as it is, metadata and text; None where there is none.

    Raises:
        SwagError: The existing metadata is not YAML, or its marks are not one pair. Nothing is guessed then.

    Warns:
        UserWarning: What of the existing model-index is left out, since the Hub's own client cannot read it.
    """
    ours = find_marked(card.text)
    if ours is None or existing is None:
        return card
    try:
        # RepoCard keeps every key as it stands; ModelCard would already rearrange the model-index.
        present = RepoCard(str(existing))
        metadata = _merged_metadata(RepoCard(str(card)).data.to_dict(), present.data.to_dict())
        text = _merged_text(card.text, ours.block, present.text)
        return ModelCard(f"---\n{CardData(**metadata).to_yaml()}\n---\n{text}")
    except (YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # all that YAML of another shape can raise
        raise SwagError(
            f"The metadata at the top of the README.md that is there already cannot be read: {type(error).__name__}: "
            f"{str(error)[:300]} Correct it by hand; overwriting it would lose its content."
        ) from error


def _merged_text(whole: str, block: str, present: str) -> str:
    marked = find_marked(present)
    if marked is not None:
        return marked.before + block + marked.after
    if _is_unfilled_template(present):
        return f"\n{whole.lstrip()}"
    if not _TRAINER_COMMENT.search(present):
        return f"{present.rstrip()}\n\n{block}\n"
    text = _TRAINER_SENTENCE.sub("", _TRAINER_COMMENT.sub("", present, count=1), count=1)
    first = _EMPTY_SECTION.search(text)
    before, after = (text[: first.start()], text[first.start() :]) if first else (text, "")
    return f"{before.rstrip()}\n\n{block}\n\n{_EMPTY_SECTION.sub('', after)}".rstrip() + "\n"


def _is_unfilled_template(text: str) -> bool:
    """Is this nothing, or the Hub client's template with all its blanks, as ``PeftModel.save_pretrained`` leaves it?"""
    unfilled = ModelCard.from_template(ModelCardData()).text
    return _words(_TEMPLATE_ADDITIONS.sub("", text)) in ([], _words(unfilled))


def _words(text: str) -> list[str]:
    return text.split()


def _merged_metadata(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    merged = {**theirs, **ours}
    if "base_model" not in ours and not is_hub_id(theirs.get("base_model")) and not isinstance(theirs.get("base_model"), list):
        # Trainer and PEFT publish the folder that the base model was loaded from.
        merged.pop("base_model", None)
        merged.pop("base_model_relation", None)
    tags = theirs.get("tags") or []
    for tag in [tags] if isinstance(tags, str) else tags:
        folder = isinstance(tag, str) and tag.startswith(_ADAPTER_TAG) and not is_hub_id(tag[len(_ADAPTER_TAG) :])
        if tag not in merged["tags"] and not folder:
            merged["tags"] = [*merged["tags"], tag]
    for name in ("datasets", "metrics"):
        if name in ours:
            present = theirs.get(name) or []
            listed = [present] if isinstance(present, str) else list(present)
            merged[name] = [*listed, *(value for value in ours[name] if value not in listed)]
    index = _merged_index(ours.get("model-index", []), theirs.get("model-index") or [])
    merged.pop("model-index", None)
    return {**merged, "model-index": index} if index else merged


def _merged_index(ours: list[dict[str, Any]], theirs: Any) -> list[dict[str, Any]]:
    """Replace our metrics and keep theirs. The Hub shows one model, so ours go to the one that is there."""
    kept = []
    for model in _readable_models(theirs):
        results = [{**result, "metrics": [one for one in result["metrics"] if not is_ours(one)]} for result in model["results"]]
        results = [result for result in results if result["metrics"]]
        if results:
            kept.append({**model, "results": results})
    if not kept or not ours:
        return kept or ours
    return [{**kept[0], "results": [*kept[0]["results"], *ours[0]["results"]]}, *kept[1:]]


def _readable_models(index: Any) -> list[dict[str, Any]]:
    """Return what of a model-index the Hub's client can read. Other tools write entries without results, or results without a data set."""
    models, problems = [], []
    for model in index if isinstance(index, list) else [index]:
        results = model.get("results") if isinstance(model, dict) else None
        if results is None:
            problems.append(f"{str(model)[:100]!r} has no results")
            continue
        readable = []
        for result in results if isinstance(results, list) else [results]:
            try:
                model_index_to_eval_results([{"name": model.get("name"), "results": [result]}])
                readable.append(result)
            except (KeyError, TypeError, AttributeError) as error:
                problems.append(f"{str(result)[:100]!r} ({type(error).__name__}: {error})")
        models.append({"name": "model", **model, "results": readable})
    if problems:
        warnings.warn(
            f"The model-index of the README.md that is there already has {len(problems)} entries that the Hub's client cannot read; they are "
            f"left out: {'; '.join(problems)[:500]}.",
            UserWarning,
            stacklevel=5,
        )
    return models
