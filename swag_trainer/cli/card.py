"""Write the model card with the figures that evaluate measured, and its plots, into files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from swag_trainer.cli.files import needed, refuse_existing, write_files
from swag_trainer.cli.options import CommonOptions
from swag_trainer.errors import SwagError
from swag_trainer.posterior.swag import SwagPosterior


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Whose card, and where it goes."""

    model: str = field(metadata={"help": "a folder with a posterior, or a repository on the Hub"})
    results: str | None = field(
        default=None, metadata={"help": "what 'evaluate --output' wrote; without it the card has no figures"}
    )
    repo: str | None = field(default=None, metadata={"help": "user/name on the Hub, for the title and the example"})
    output: str | None = field(
        default=None,
        metadata={"help": "README.md; where MODEL is a folder, the one there by itself. What people wrote in it stays"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace plots that no card of ours stands beside"})


def run(options: Options, out: TextIO) -> None:
    """Build, merge and write.

    Raises:
        SwagError: The posterior or the results cannot be used, they do not belong together, or a file would be replaced unasked.
    """
    needed("matplotlib", "jinja2")
    from hub_cards import merge_card
    from hub_cards.marks import find_marked
    from swag_trainer.cli.card_parts import card_with_plots
    from swag_trainer.cli.results import EvaluationFile

    if options.output is None and not Path(options.model).is_dir():
        raise SwagError(f"{options.model!r} is no folder of this machine; --output README.md says where the card goes.")
    path = Path(options.output) if options.output is not None else Path(options.model) / "README.md"
    if path.suffix != ".md":
        raise SwagError(f"--output is a file that ends in .md, got {str(path)!r}.")
    results = None if options.results is None else EvaluationFile.read(options.results)
    posterior = SwagPosterior.from_pretrained(options.model)
    card, plots = card_with_plots(posterior, results, repo_id=options.repo)
    existing = path.read_text(encoding="utf-8-sig") if path.is_file() else None
    files = {path.with_name(name): content for name, content in plots.items()}
    is_ours = existing is not None and find_marked(existing) is not None
    refuse_existing(*files, overwrite=options.overwrite or is_ours)
    # The card comes last: it never links to a plot that is not there.
    write_files({**files, path: str(merge_card(card, existing)).encode()}, overwrite=True)
    for file in (path, *files):
        out.write(f"{file}\n")
