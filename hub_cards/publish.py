"""publish_card: README.md, its plots and files -> one commit on the Hub, which keeps what people wrote into the README.md there."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, LocalEntryNotFoundError
from matplotlib.figure import Figure

from hub_cards.card import checked_plot
from hub_cards.drawing import as_png
from hub_cards.merging import merge_card
from swag_trainer import SwagError

# HTTPError is that of the HTTP library (httpx or httpx2) that huggingface_hub was built with; a refused connection is one and no
# OSError. ValueError: ids, YAML and texts that no file can hold. RuntimeError: a large file that could not be uploaded.
FAILURES = (HTTPError, OSError, ValueError, RuntimeError)
_PRECONDITION_FAILED = 412
_ATTEMPTS = 3


def publish_card(
    repo_id: str,
    card: ModelCard,
    *,
    figures: Mapping[str, Figure] = {},
    files: Mapping[str, bytes] = {},
    private: bool | None = None,
    commit_message: str = "Add model card with measured figures",
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Put a card and its plots into a model repository in one commit, so that no card links to a plot that is not there.

    The README.md that the repository has is kept but for what is ours, see `hub_cards.merge_card`; a card without marks, which
    somebody wrote whole, replaces it. If another commit lands meanwhile, README.md is read again: nobody's words are overwritten.

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
        plots = {checked_plot(path): as_png(figure) for path, figure in figures.items()}
        beside = plots | _checked_files(files, {"README.md", *plots})
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        for attempt in range(_ATTEMPTS):
            head = api.repo_info(repo_id, revision=revision).sha
            readme = str(merge_card(card, readme_of(api, repo_id, head))).encode()
            operations = [CommitOperationAdd(path, content) for path, content in {"README.md": readme, **beside}.items()]
            try:
                return api.create_commit(
                    repo_id,
                    operations,
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                    parent_commit=head,
                )
            except HfHubHTTPError as error:
                if error.response.status_code != _PRECONDITION_FAILED or attempt == _ATTEMPTS - 1:
                    raise
    except FAILURES as error:
        raise SwagError(f"Nothing was committed to {repo_id!r}: {type(error).__name__}: {str(error)[:300]}") from error
    except SwagError as error:
        raise SwagError(f"Nothing was committed to {repo_id!r}: {error}") from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def readme_of(api: HfApi, repo_id: str, commit: str) -> str | None:
    """Return README.md of one commit of a model repository, None where it has none."""
    try:
        path = hf_hub_download(repo_id, "README.md", revision=commit, endpoint=api.endpoint, token=api.token)
    except LocalEntryNotFoundError:  # not in the cache, and the Hub cannot be asked: that says nothing about the repository
        raise
    except EntryNotFoundError:
        return None
    with open(path, encoding="utf-8-sig", newline="") as file:
        return file.read()


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
