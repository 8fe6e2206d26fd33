"""Write the model card of a posterior, with the metrics that evaluate measured and their plots."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from swag_trainer.cli.files import prepared_outputs, refuse_existing, require, text_of, write_files
from swag_trainer.cli.options import CardOptions
from swag_trainer.cli.repositories import check_repo_id
from swag_trainer.errors import SwagError
from swag_trainer.posterior import load_posterior


@dataclass(frozen=True, kw_only=True)
class Options(CardOptions):
    """Options of `swag-trainer card`."""

    results: str | None = field(
        default=None, metadata={"help": "file of 'evaluate --output'; without it the card has no metrics"}
    )
    repo: str | None = field(default=None, metadata={"help": "user/name on the Hub, for the title and the example"})
    output: str | None = field(
        default=None,
        metadata={"help": "a .md file; default: README.md in MODEL, where that is a folder. Text outside our card stays"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace plots that lie beside a file without a card of ours"})


def run(options: Options, out: TextIO) -> None:
    """Build, merge and write.

    Raises:
        SwagError: The posterior or the results cannot be used, they do not belong together, or a file would be replaced unasked.
    """
    require("matplotlib", "jinja2", "markupsafe", extra="cards")
    from hub_cards import merge_card
    from hub_cards.marks import find_marked
    from swag_trainer.cli.card_parts import card_with_plots, plot_names
    from swag_trainer.evaluation.record import Measurement

    if options.output is None and not Path(options.model).is_dir():
        raise SwagError(
            f"{options.model!r} is not a folder of this machine; name the file of the card with --output README.md."
        )
    path = Path(options.output) if options.output is not None else Path(options.model) / "README.md"
    if path.suffix != ".md":
        raise SwagError(f"--output must be a file that ends in .md, got {str(path)!r}.")
    results = None if options.results is None else Measurement.read(options.results)
    with prepared_outputs(files=[path], overwrite=True):
        existing = text_of(path)
        is_ours = existing is not None and find_marked(existing) is not None
        refuse_existing(*map(path.with_name, plot_names(results)), overwrite=options.overwrite or is_ours)
        posterior = load_posterior(options.model, ignore_mismatched_adapter=options.ignore_mismatched_adapter)
        if options.base_model is not None:
            check_repo_id(options.base_model, "--base-model")
            posterior = posterior.with_base_model(options.base_model)
        card, plots = card_with_plots(posterior, results, repo_id=options.repo, given=options.given())
        files = {path.with_name(name): content for name, content in plots.items()}
        # The card comes last: it never links to a plot that is not there.
        write_files({**files, path: str(merge_card(card, existing)).encode()})
    for file in (path, *files):
        out.write(f"{file}\n")
