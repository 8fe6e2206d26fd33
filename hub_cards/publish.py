"""publish_card: model card, plots and files in one commit on the Hub, with other text of the README.md there kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from huggingface_hub import CommitInfo, CommitOperationAdd, ModelCard

from hub_cards.card import checked_plot
from hub_cards.merging import merge_card
from hub_cards.metadata import EVAL_RESULTS, eval_results_file
from swag_trainer import SwagError
from swag_trainer.hub import FAILURES, README, upload

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def publish_card(
    repo_id: str,
    card: ModelCard,
    *,
    figures: Mapping[str, Figure] = {},
    files: Mapping[str, bytes] = {},
    private: bool | None = None,
    commit_message: str = "Add model card with measured metrics",
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Put a card and its plots into a model repository in one commit, so that no card links to a plot that is not there.

    The README.md that the repository has is kept but for what is ours, see `hub_cards.merge_card`; a card without marks, which
    was written by hand, replaces it. If another commit lands meanwhile, README.md is read again: no text is overwritten unread.

    The accuracy on a data set of the Hub also goes into ``.eval_results/swag_trainer.yaml``, which the Hub shows and ranks. A card without one
    removes that file.

    ``trainer.push_to_hub()`` writes a README.md of its own: call this after it, or train with `hub_cards.PreserveModelCardMixin`. What else lies in
    the repository stays.

    Args:
        repo_id: "user/name"; created if needed.
        card: What `hub_cards.build_card` returned.
        figures: The plots, by their path in the repository: ``{"reliability.png": figure}``.
        files: Contents of other files that belong to the card, by their path in the repository: plots that are PNG already, the adapter
            and the posterior that it describes.
        private: Visibility of a repository that is created; one that is there keeps its own.
        commit_message: First line of the commit.
        token: Access token, as everywhere in huggingface_hub.
        revision: Branch to commit to; created if needed.
        create_pr: Open a pull request instead.

    Returns:
        The commit; ``.oid`` pins it. Where nothing would change it is the one that is there.

    Raises:
        SwagError: Nothing was committed: the card or a plot cannot be written, a file has the path of the card, of a plot or of none in
            a repository, the README.md there cannot be read, or the Hub said no or could not be reached.
    """
    try:
        str(card).encode()  # what no file can hold is refused before a repository is created for it
        plots = {checked_plot(path): _as_png(figure) for path, figure in figures.items()}
        ranked = eval_results_file(card)
        beside = (
            plots | _checked_files(files, {README, EVAL_RESULTS, *plots}) | ({} if ranked is None else {EVAL_RESULTS: ranked})
        )
    except (SwagError, *FAILURES) as error:
        raise SwagError(f"Nothing was committed to {repo_id!r}: {error}") from error
    return upload(
        beside,
        repo_id,
        commit_message=commit_message,
        revision=revision,
        private=private,
        token=token,
        create_pr=create_pr,
        merge=lambda readme: str(merge_card(card, readme)).encode(),
        absent=[EVAL_RESULTS] if ranked is None else [],
    )


def _as_png(figure: Figure) -> bytes:
    from hub_cards.drawing import as_png  # with matplotlib, which a push without figures does without

    return as_png(figure)


def _checked_files(files: Mapping[str, bytes], taken: set[str]) -> dict[str, bytes]:
    """Return the files by the paths that the Hub will give them.

    Raises:
        ValueError: A path is none inside a repository, or is taken.
    """
    checked: dict[str, bytes] = {}
    for path, content in files.items():
        name = CommitOperationAdd(path, content).path_in_repo  # "/README.md" and "./README.md" are README.md
        if name in taken or name in checked:
            raise ValueError(
                f"publish_card(files=...) has {path!r}, which is the path of the card, of a plot or of another file."
            )
        checked[name] = content
    return checked
