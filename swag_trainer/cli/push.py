"""Put adapter, posterior, tokenizer or image processor, card and plots on the Hub in one commit."""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from huggingface_hub import ModelCard, RepoCard

from swag_trainer.cli.files import require, text_of
from swag_trainer.cli.options import CardOptions
from swag_trainer.cli.repositories import check_repo_id
from swag_trainer.errors import SwagError
from swag_trainer.hub import read_readme
from swag_trainer.posterior import load_posterior
from swag_trainer.posterior.base import WeightPosterior

if TYPE_CHECKING:
    from swag_trainer.evaluation.record import Measurement

_PLOT = re.compile(r"!\[[^\]]*\]\(([A-Za-z0-9][A-Za-z0-9._-]*\.png)\)")


@dataclass(frozen=True, kw_only=True)
class Options(CardOptions):
    """Options of `swag-trainer push`."""

    repo: str = field(metadata={"help": "user/name on the Hub; created if needed"})
    results: str | None = field(
        default=None,
        metadata={"help": "file of 'evaluate --output', for the card; default: the card in the README.md of the folder"},
    )
    private: bool = field(default=False, metadata={"help": "create the repository as a private one"})
    revision: str | None = field(default=None, metadata={"help": "branch; created if needed"})
    message: str = field(default="Upload SWAG posterior", metadata={"help": "first line of the commit"})


def run(options: Options, out: TextIO) -> None:
    """Push, and print the commit.

    Raises:
        SwagError: Nothing was committed.
    """
    require("jinja2", "markupsafe", extra="cards")
    from hub_cards import publish_card
    from swag_trainer.evaluation.record import Measurement

    folder = Path(options.model)
    if not folder.is_dir():
        raise SwagError(
            f"{options.model!r} is not a folder of this machine; push takes the folder that train, collect or tune wrote."
        )
    check_repo_id(options.repo, "--repo")
    results = None if options.results is None else Measurement.read(options.results)
    posterior = load_posterior(folder, ignore_mismatched_adapter=options.ignore_mismatched_adapter)
    posterior = _with_published_base(posterior, options.base_model)
    card, plots = _card(options, folder, posterior, results)
    with tempfile.TemporaryDirectory(prefix="swag_trainer-") as place:
        posterior.save_pretrained(place)  # adapter and posterior that belong together, whatever else lies in the folder
        files = _files_in(Path(place))
    commit = publish_card(
        options.repo,
        card,
        files=files | _preprocessor_files(folder) | plots,
        private=options.private or None,
        commit_message=options.message,
        revision=options.revision,
    )
    out.write(f"{commit.commit_url}\n")
    if not (folder / "README.md").is_file():
        return
    published = read_readme(options.repo, commit.oid) or ""
    if _lines_outside(card) - _lines_outside(RepoCard(published)):
        sys.stderr.write(
            f"{options.repo!r} had a README.md already, which was kept outside the card: the text of {str(folder / 'README.md')!r} there "
            "was not pushed. Add it by hand.\n"
        )


def _with_published_base(posterior: WeightPosterior, base_model: str | None) -> WeightPosterior:
    """Return the posterior with a base model that others can load: the one that was given, else its own.

    Raises:
        SwagError: It is named by a folder, and none was given; or what was given is not the id of a repository.
    """
    own = posterior.adapter.base_model
    if base_model is None:
        if own is None or posterior.adapter.base_is_folder:
            named = "no base model" if own is None else f"its base model by a folder of this machine, {own!r}"
            raise SwagError(
                f"The adapter names {named}: whoever loads the repository would not find it. Name it as it is on the Hub: --base-model "
                "user/base. A base of your own has to be pushed first."
            )
        return posterior
    check_repo_id(base_model, "--base-model")
    return posterior if own == base_model else posterior.with_base_model(base_model)


def _card(
    options: Options, folder: Path, posterior: WeightPosterior, results: Measurement | None
) -> tuple[ModelCard, dict[str, bytes]]:
    """Return the card and its plots: built from the results, taken from the folder, or one without metrics."""
    from hub_cards import merge_card
    from hub_cards.identity import identity
    from hub_cards.marks import find_marked
    from hub_cards.metadata import given_metadata
    from swag_trainer.cli.card_parts import card_with_plots

    readme = folder / "README.md"
    text = text_of(readme)
    marked = None if text is None else find_marked(text)
    if results is not None or text is None or marked is None:
        card, plots = card_with_plots(posterior, results, repo_id=options.repo, given=options.given())
        return merge_card(card, text), plots
    if marked.identity != identity(posterior):
        raise SwagError(
            f"The card in {str(readme)!r} describes another posterior than the one beside it: its metrics would be wrong. Write it "
            "again with swag-trainer card, or pass --results."
        )
    if f'model="{options.repo}"' not in marked.block:
        raise SwagError(
            f"The example of the card in {str(readme)!r} is not about {options.repo!r}: write it again with swag-trainer card "
            f"--repo {options.repo}, or pass --results."
        )
    paths = [folder / name for name in dict.fromkeys(_PLOT.findall(marked.block))]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise SwagError(f"The card in {str(readme)!r} links to {missing[0]!r}, which is not there.")
    if options.base_model is not None and f'"{options.base_model}"' not in marked.block:
        raise SwagError(
            f"The card in {str(readme)!r} does not name the base model {options.base_model!r}: write it again with swag-trainer card "
            "--base-model, or pass --results."
        )
    card = ModelCard(text)
    for name, value in given_metadata(**options.given()).items():
        card.data[name] = value
    return card, {path.name: path.read_bytes() for path in paths}


def _lines_outside(card: RepoCard) -> set[str]:
    """Return the lines outside our card, without titles, which may be ours too."""
    from hub_cards.marks import find_marked

    marked = find_marked(card.text)
    text = card.text if marked is None else marked.before + marked.after
    return {line.strip() for line in text.splitlines() if line.strip() and not line.startswith("# ")}


def _preprocessor_files(folder: Path) -> dict[str, bytes]:
    """Return the files that the folder's tokenizer or image processor saves; none where the folder has neither."""
    from swag_trainer.prediction.image_processors import PROCESSOR_FILE, load_image_processor
    from swag_trainer.prediction.tokenizers import load_tokenizer

    with tempfile.TemporaryDirectory(prefix="swag_trainer-") as place:
        if (folder / "tokenizer_config.json").is_file():
            load_tokenizer(folder).save_pretrained(place)
        if (folder / PROCESSOR_FILE).is_file():
            load_image_processor(folder).save_pretrained(place)
        files = _files_in(Path(place))
    if not files:
        sys.stderr.write(f"There is no tokenizer and no image processor in {str(folder)!r}: that of the base model is used.\n")
    return files


def _files_in(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files in a folder and below, by their paths in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
