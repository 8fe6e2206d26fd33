"""Download from and upload to the Hugging Face Hub: one commit each, with retries and one error for every failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from swag_trainer.errors import PosteriorNotFoundError, SwagError

# HTTPError is that of the HTTP library (httpx or httpx2) that huggingface_hub was built with; a refused connection is one and no
# OSError. ValueError: ids and names that cannot be. RuntimeError: a large file that could not be uploaded.
FAILURES = (HTTPError, OSError, ValueError, RuntimeError)

README = "README.md"

_TRANSIENT = {429, 500, 502, 503, 504}
_ATTEMPTS = 5
_PRECONDITION_FAILED = 412  # another commit landed on the branch
_CONFLICTS = 3


def download(
    repo_id: str,
    filenames: Iterable[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Fetch files of one commit of a model repository into the cache and return the folder they lie in.

    Args:
        repo_id: "user/name".
        filenames: Which files; all are needed.
        revision: Branch, tag or commit. It is resolved once, so that a commit landing meanwhile cannot mix two versions.
        token: Access token, see `huggingface_hub.hf_hub_download`; the other arguments too.

    Raises:
        PosteriorNotFoundError: The repository, the revision or one of the files does not exist, or is not in the cache while offline.
        SwagError: The Hub could not be asked; the error says nothing about what exists.
    """
    where = f"{repo_id!r} at revision {str(revision or 'main')!r}"
    options: dict[str, Any] = {
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    try:
        resolved = HfApi(token=token).resolve_revision(
            repo_id, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
        paths = []
        for filename in filenames:
            try:
                paths.append(hf_hub_download(repo_id, filename, revision=resolved, **options))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError as error:
                raise PosteriorNotFoundError(_missing(where, filename)) from error
    except HFValidationError as error:
        raise PosteriorNotFoundError(
            f"{repo_id!r} is neither a folder that exists nor the id of a repository on the Hub."
        ) from error
    except GatedRepoError as error:
        raise PosteriorNotFoundError(f"Access to {where} is gated: ask for it on the Hub and pass token=...") from error
    except RepositoryNotFoundError as error:
        raise PosteriorNotFoundError(
            f"There is no repository {repo_id!r} on the Hub, or it is private and the token is missing or of another account."
        ) from error
    except RevisionNotFoundError as error:
        raise PosteriorNotFoundError(f"The repository {repo_id!r} has no revision {str(revision)!r}.") from error
    except (LocalEntryNotFoundError, RevisionResolutionError) as error:
        raise PosteriorNotFoundError(
            f"{where} is not complete in the local cache, and the Hub cannot be reached or must not be asked (offline mode). "
            f"Load it once while online. {_short(error)}"
        ) from error
    except (HTTPError, OSError) as error:
        raise SwagError(f"Loading {where} failed before anything could be read: {_short(error)}") from error
    return Path(paths[0]).parent


def upload(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    commit_message: str,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    merge: Callable[[str | None], bytes] | None = None,
) -> CommitInfo:
    """Put files into a model repository in one atomic commit, so that half of them can never be loaded.

    The repository, and the branch ``revision``, are created if needed. Responses 429 and 5xx are tried again with growing pauses.

    Args:
        files: Contents of each path in the repository.
        repo_id: "user/name" or "name".
        commit_message: First line of the commit.
        revision: Branch; the default branch if None.
        private: Visibility of a repository that is created.
        token: Access token, see `huggingface_hub.HfApi`.
        create_pr: Open a pull request instead of committing to the branch.
        merge: Makes README.md out of the one in the repository (None where there is none). The commit is then made on top of the
            commit that this one was read from; where another commit landed meanwhile, README.md is read again, three times at most.

    Returns:
        The commit. Where nothing would change it is the one that is there.

    Raises:
        SwagError: The commit was not made; also where ``merge`` raised one.
    """
    api = HfApi(token=token)
    attempts, conflicts = _ATTEMPTS, _CONFLICTS
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        while True:
            parent, contents = None, dict(files)
            if merge is not None:
                parent = api.repo_info(repo_id, revision=revision).sha
                contents = {README: merge(_readme_at(api, repo_id, parent)), **contents}
            operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
            try:
                return api.create_commit(
                    repo_id,
                    operations,
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                    parent_commit=parent,
                )
            except HfHubHTTPError as error:
                status = None if error.response is None else error.response.status_code
                if status == _PRECONDITION_FAILED and conflicts > 1:
                    conflicts -= 1
                elif status in _TRANSIENT and attempts > 1:
                    time.sleep(0.5 * 2 ** (_ATTEMPTS - attempts))
                    attempts -= 1
                else:
                    raise
    except FAILURES as error:
        raise SwagError(f"Nothing was committed to {repo_id!r}: {_short(error)}") from error
    except SwagError as error:
        raise SwagError(f"Nothing was committed to {repo_id!r}: {error}") from error


def read_readme(repo_id: str, revision: str | None = None, *, token: str | bool | None = None) -> str | None:
    """Return README.md of a model repository, line ends as they are; None where it has none.

    Args:
        repo_id: "user/name".
        revision: Branch or commit.
        token: Access token.

    Raises:
        OSError, ValueError, HTTPError: It cannot be read (`FAILURES`); that says nothing about what exists.
    """
    api = HfApi(token=token)
    return _readme_at(api, repo_id, api.repo_info(repo_id, revision=revision).sha)


def delete_if_present(repo_id: str, path: str, *, commit_message: str, revision: str | None, token: str | None) -> None:
    """Delete a file of a model repository in a commit of its own, if it is there.

    Raises:
        SwagError: The Hub cannot be reached or refused.
    """
    api = HfApi(token=token)
    try:
        if api.file_exists(repo_id, path, revision=revision):
            api.delete_file(path, repo_id, commit_message=commit_message, revision=revision)
    except FAILURES as error:
        raise SwagError(f"{path!r} could not be deleted from {repo_id!r}: {_short(error)}") from error


def _readme_at(api: HfApi, repo_id: str, commit: str) -> str | None:
    try:
        path = hf_hub_download(repo_id, README, revision=commit, endpoint=api.endpoint, token=api.token)
    except LocalEntryNotFoundError:  # not in the cache, and the Hub cannot be asked: that says nothing about the repository
        raise
    except EntryNotFoundError:
        return None
    with open(path, encoding="utf-8-sig", newline="") as file:
        return file.read()


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def _missing(where: str, filename: str) -> str:
    hint = ""
    if filename.startswith("swag_posterior"):
        hint = (
            ' It holds no posterior; collect one with SwagCallback, or use the "text-classification" task for a plain adapter.'
        )
    return f"{where} has no {filename}.{hint}"
