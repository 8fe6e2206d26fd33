"""publish_card: README.md and its plots -> one commit on the Hub."""

from __future__ import annotations

import io
from collections.abc import Mapping

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from matplotlib.figure import Figure

from hub_cards.card import checked_plot
from swag_trainer import SwagError


def publish_card(
    repo_id: str,
    card: ModelCard,
    *,
    figures: Mapping[str, Figure] = {},
    commit_message: str = "Add model card with measured figures",
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Put a card and its plots into a model repository in one commit, so that no card links to a plot that is not there.

    Call it after ``trainer.push_to_hub()``, which writes a README.md of its own. What else lies in the repository stays.

    Args:
        repo_id: "user/name"; created if needed.
        card: What `hub_cards.build_card` returned.
        figures: The plots, by their path in the repository: ``{"reliability.png": figure}``.
        commit_message: First line of the commit.
        token: Access token, as everywhere in huggingface_hub.
        revision: Branch to commit to; created if needed.
        create_pr: Open a pull request instead.

    Returns:
        The commit; ``.oid`` pins it.

    Raises:
        SwagError: Nothing was committed: the card or a plot cannot be written, or the Hub said no or could not be reached.
    """
    try:
        contents = {"README.md": str(card).encode()}
        contents |= {checked_plot(path): _png(figure) for path, figure in figures.items()}
        operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision, create_pr=create_pr)
    # Not a list of types: a refused connection is an httpx error with huggingface_hub 1 and an httpx2 error with 2, no OSError.
    except Exception as error:
        raise SwagError(f"Nothing was committed to {repo_id!r}: {type(error).__name__}: {str(error)[:300]}") from error


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
