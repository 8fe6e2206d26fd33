"""Download from and upload to the Hugging Face Hub: one commit each, with retries and one error for every failure."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from swag_trainer.errors import PosteriorNotFoundError, SwagError
from swag_trainer.retries import ATTEMPTS, DROPPED, TOO_MANY_REQUESTS, pause_after, retried, status_of

# HTTPError is that of the HTTP library (httpx or httpx2) that huggingface_hub was built with; a refused connection is one and no
# OSError. ValueError: ids and names that cannot be. RuntimeError: a large file that could not be uploaded.
# KeyError: a reply without what the client looks for in it.
FAILURES = (HTTPError, KeyError, OSError, ValueError, RuntimeError)

README = "README.md"

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
        resolved = retried(
            lambda: HfApi(token=token).resolve_revision(
                repo_id, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
            )
        )
        paths = []
        for filename in filenames:
            try:
                paths.append(retried(partial(hf_hub_download, repo_id, filename, revision=resolved, **options)))
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
            f"There is no repository {repo_id!r} on the Hub and no folder of that name here; or the repository is private, and the token is "
            "missing or of another account."
        ) from error
    except RevisionNotFoundError as error:
        raise PosteriorNotFoundError(f"The repository {repo_id!r} has no revision {str(revision)!r}.") from error
    except (LocalEntryNotFoundError, RevisionResolutionError) as error:
        raise PosteriorNotFoundError(
            f"{where} is not complete in the local cache, and the Hub cannot be reached or must not be asked (offline mode). "
            f"Load it once while online. {_short(error)}"
        ) from error
    except (HTTPError, OSError) as error:
        raise SwagError(
            f"{repo_id!r} is not a folder here, and loading {where} from the Hub failed before anything could be read: {_short(error)}"
        ) from error
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
    absent: Iterable[str] = (),
) -> CommitInfo:
    """Put files into a model repository in one atomic commit, so that half of them can never be loaded.

    The repository, and the branch ``revision``, are created if needed. Responses 429 and 5xx and dropped connections are tried again,
    after the pause that the Hub asks for or after growing ones. Where the reply to the commit is lost, the repository is looked at.

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
        absent: Paths in the repository that the commit deletes where they are there; only with ``merge``.

    Returns:
        The commit. Where nothing would change it is the one that is there.

    Raises:
        SwagError: The commit was not made, also where ``merge`` raised an error; or whether it was made cannot be determined, and the
            error says so.
    """
    api, conflicts, failures, is_lost = HfApi(token=token), _CONFLICTS, 0, False
    contents: dict[str, Path | bytes] = dict(files)
    try:
        repo_id = retried(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        if revision is not None and not create_pr:
            retried(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        while True:
            parent = None
            if merge is not None:
                parent = retried(lambda: api.repo_info(repo_id, revision=revision)).sha
                contents = {README: merge(_readme_at(api, repo_id, parent)), **files}
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(name, content) for name, content in contents.items()
            ]
            if parent is not None:
                operations += [CommitOperationDelete(name) for name in absent if _is_at(api, repo_id, name, parent)]
            try:
                return api.create_commit(
                    repo_id,
                    operations,
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                    parent_commit=parent,
                )
            except HTTPError as error:
                if status_of(error) == _PRECONDITION_FAILED and conflicts > 1:
                    conflicts -= 1
                    continue
                failures += 1
                pause, is_lost = pause_after(error, failures), is_lost or _may_be_committed(error)
                if pause is None or failures == ATTEMPTS or (is_lost and create_pr):
                    if is_lost:
                        return _found(api, repo_id, contents, commit_message, revision, error, create_pr=create_pr)
                    raise
                time.sleep(pause)  # what was committed after all is not committed again: files that are there are left out
    except FAILURES as error:
        raise SwagError(f"Nothing was committed to {repo_id!r}: {_short(error)}") from error
    except _UnknownOutcomeError:
        raise
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
    return _readme_at(api, repo_id, retried(lambda: api.repo_info(repo_id, revision=revision)).sha)


def delete_if_present(repo_id: str, path: str, *, commit_message: str, revision: str | None, token: str | None) -> None:
    """Delete a file of a model repository in a commit of its own, if it is there.

    Raises:
        SwagError: The Hub cannot be reached or refused.
    """
    api = HfApi(token=token)

    def delete() -> None:
        if api.file_exists(repo_id, path, revision=revision):
            api.delete_file(path, repo_id, commit_message=commit_message, revision=revision)

    try:
        retried(delete)
    except FAILURES as error:
        raise SwagError(f"{path!r} could not be deleted from {repo_id!r}: {_short(error)}") from error


class _UnknownOutcomeError(SwagError):
    """A commit was sent, and whether it was made cannot be determined."""


def _may_be_committed(error: HTTPError) -> bool:
    """Was it the commit itself that failed, in a way after which it may have been made?"""
    if status_of(error) in (None, TOO_MANY_REQUESTS) and type(error).__name__ not in DROPPED:
        return False
    try:
        return (status_of(error) or 500) >= 500 and "/commit/" in error.request.url.path
    except RuntimeError:  # of the HTTP library: the error does not know its request
        return True


def _found(
    api: HfApi,
    repo_id: str,
    contents: Mapping[str, Path | bytes],
    message: str,
    revision: str | None,
    error: HTTPError,
    *,
    create_pr: bool,
) -> CommitInfo:
    """Return the commit whose reply was lost, if all of its files are there.

    Raises:
        HTTPError: They are not: it is the error of the commit.
        SwagError: The Hub cannot be asked, or a pull request was to be opened.
    """
    unknown = f"Whether {'a pull request was opened in' if create_pr else 'the commit to'} {repo_id!r} {'' if create_pr else 'was made '}"
    unknown += f"cannot be determined, as the Hub's reply was lost ({_short(error)})."
    if create_pr:
        raise _UnknownOutcomeError(f"{unknown} Look at its pull requests before you push again.") from error
    try:
        head = retried(lambda: api.repo_info(repo_id, revision=revision)).sha
        there = {item.path: item for item in retried(lambda: api.get_paths_info(repo_id, list(contents), revision=head))}
    except FAILURES as failure:
        raise _UnknownOutcomeError(
            f"{unknown} Push again when the Hub can be reached: what is there already is not committed twice."
        ) from failure
    if not all(name in there and _is_same(there[name], content) for name, content in contents.items()):
        raise error
    return CommitInfo(
        commit_url=f"{api.endpoint}/{repo_id}/commit/{head}", commit_message=message, commit_description="", oid=head
    )


def _is_same(entry: Any, content: Path | bytes) -> bool:
    """Has a file in a repository this content?"""
    if entry.lfs is not None:
        return entry.lfs.sha256 == CommitOperationAdd(entry.path, content).upload_info.sha256.hex()
    data = content if isinstance(content, bytes) else content.read_bytes()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _readme_at(api: HfApi, repo_id: str, commit: str) -> str | None:
    try:
        path = retried(lambda: hf_hub_download(repo_id, README, revision=commit, endpoint=api.endpoint, token=api.token))
    except LocalEntryNotFoundError:  # not in the cache, and the Hub cannot be asked: that says nothing about the repository
        raise
    except EntryNotFoundError:
        return None
    with open(path, encoding="utf-8-sig", newline="") as file:
        return file.read()


def _is_at(api: HfApi, repo_id: str, path: str, commit: str) -> bool:
    return retried(lambda: api.file_exists(repo_id, path, revision=commit))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _missing(where: str, filename: str) -> str:
    hint = ""
    if filename.startswith("swag_posterior"):
        hint = (
            ' It holds no posterior; collect one with SwagCallback, or use the "text-classification" task for a plain adapter.'
        )
    return f"{where} has no {filename}.{hint}"
