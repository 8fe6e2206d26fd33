import socket

import pytest
from huggingface_hub import HfApi

from swag_trainer import SwagError, SwagPosterior
from swag_trainer.hub import download, upload


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A Hub that refuses every connection, and a cache without anything."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    for module in ("huggingface_hub.constants", "huggingface_hub.hf_api"):
        monkeypatch.setattr(f"{module}.ENDPOINT", f"http://127.0.0.1:{port}", raising=False)
    return tmp_path


def test_a_hub_that_refuses_connections_is_one_error_of_ours_both_ways(nobody):
    # Red for: FAILURES without the error of the HTTP library, which is no OSError; a traceback of httpx.
    with pytest.raises(SwagError, match="Nothing was committed to 'user/name'.*refused"):
        upload({"a.txt": b"a"}, "user/name", commit_message="a")
    with pytest.raises(SwagError, match="'user/name' at revision 'main'.*Hub cannot be reached"):
        SwagPosterior.from_pretrained("user/name", cache_dir=nobody)


def test_what_is_no_repository_id_is_one_error_of_ours(nobody):
    # Red for: FAILURES without ValueError, which huggingface_hub's own check of names is.
    with pytest.raises(SwagError, match="Nothing was committed to 'a/b/c'"):
        upload({"a.txt": b"a"}, "a/b/c", commit_message="a")


@pytest.fixture
def faulty(hub, monkeypatch):
    """A function that gives requests to a repository faults; and the pauses that were made."""
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setattr(hub.hub, "faults", {})

    def inject(path, *faults):
        hub.hub.faults[path] = list(faults)
        return pauses

    return inject


def titles(repo_id):
    return [commit.title for commit in HfApi().list_repo_commits(repo_id)]


@pytest.mark.parametrize("request_", ["/api/repos/create", "/api/models/user/all/branch/", "/preupload/", "/commit/"])
def test_every_request_of_an_upload_is_made_again_while_the_hub_is_busy(hub, faulty, request_):
    # Red for: a policy for the commit alone: one 429 of the request that makes the repository lost the push.
    hub.hub.repos.pop("user/all", None)
    faulty(request_, (429, {}), (500, {}), (503, {}))
    upload({"a.txt": b"a", "b.safetensors": b"b"}, "user/all", commit_message="a", revision="side")
    assert [commit.title for commit in HfApi().list_repo_commits("user/all", revision="side")] == ["a", "initial commit"]


def test_the_pause_is_the_one_that_the_hub_asks_for_and_has_an_end(faulty):
    # Red for: Retry-After ignored, which asks too early and is refused once more; or slept through when it says a day.
    pauses = faulty("/commit/", (429, {"Retry-After": "7"}), (429, {"Retry-After": "86400"}), (429, {"Retry-After": "soon"}))
    upload({"a.txt": b"a"}, "user/patient", commit_message="a")
    assert pauses == [7.0, 60.0, 2.0]


def test_a_date_to_retry_after_is_read(faulty):
    # Red for: a ValueError of int(), or a pause of zero.
    pauses = faulty("/commit/", (503, {"Retry-After": "Fri, 31 Dec 2999 23:59:59 GMT"}))
    upload({"a.txt": b"a"}, "user/dated", commit_message="a")
    assert pauses == [60.0]


@pytest.mark.parametrize("kind", ["plain", "merged"])
def test_a_commit_whose_reply_is_lost_is_made_once(faulty, kind):
    # Red for: a dropped connection given up, a second commit with the same files, "Nothing was committed" of one that was made.
    repo = f"user/lost-{kind}"
    faulty("/commit/", "lost")
    merge = (lambda readme: b"# Card") if kind == "merged" else None
    info = upload({"a.txt": b"a", "b.safetensors": b"b"}, repo, commit_message="Once", merge=merge)
    assert titles(repo) == ["Once", "initial commit"]
    assert HfApi().list_repo_commits(repo)[0].commit_id == info.oid


def test_a_commit_is_looked_for_before_it_is_called_not_made(hub, faulty):
    # Red for: "Nothing was committed" after a commit that was made, when every other attempt fails.
    faulty("/commit/", "lost")
    hub.hub.faults["/preupload/"] = ["", *[(503, {})] * 9]
    info = upload({"a.txt": b"a", "b.safetensors": b"b"}, "user/looked-for", commit_message="Once")
    assert titles("user/looked-for") == ["Once", "initial commit"]
    assert HfApi().list_repo_commits("user/looked-for")[0].commit_id == info.oid


def test_other_files_under_the_same_names_are_not_taken_for_the_commit(hub, faulty):
    # Red for: a look at the names alone, or at the small files alone.
    for files in ({"a.txt": b"A", "b.safetensors": b"b"}, {"a.txt": b"a", "b.safetensors": b"B"}):
        upload(files, "user/other-files", commit_message="Before")
        faulty("/commit/", *[(503, {})] * 9)
        with pytest.raises(SwagError, match="Nothing was committed to 'user/other-files'"):
            upload({"a.txt": b"a", "b.safetensors": b"b"}, "user/other-files", commit_message="After")
        hub.hub.faults.clear()


def test_what_cannot_be_determined_is_not_called_nothing(hub, faulty):
    # Red for: a claim about a commit that could not be looked for; an error without advice.
    faulty("/commit/", "lost")
    hub.hub.faults["/api/models/user/unknown($|/revision)"] = [(503, {})] * 60
    with pytest.raises(SwagError, match=r"Whether the commit to 'user/unknown' was made cannot be determined.*Push again"):
        upload({"a.txt": b"a"}, "user/unknown", commit_message="a")


def test_a_pull_request_whose_reply_is_lost_is_not_opened_twice(hub, faulty):
    # Red for: a second pull request of the retry.
    HfApi().create_repo("user/asked", exist_ok=True)
    faulty("/commit/", "lost")
    with pytest.raises(SwagError, match="Whether a pull request was opened in 'user/asked' cannot be determined"):
        upload({"a.txt": b"a"}, "user/asked", commit_message="a", create_pr=True)
    assert len(hub.hub.repos["user/asked"].prs) == 1


def test_a_download_is_made_again_while_the_hub_is_busy(hub, faulty, tmp_path):
    # Red for: one 503 where the revision is resolved, or of a file, called "not complete in the local cache".
    upload({"a.txt": b"a"}, "user/down", commit_message="a")
    pauses = faulty("/api/models/user/down($|/revision)", (503, {}), (429, {"Retry-After": "3"}))
    hub.hub.faults["/user/down/resolve/"] = [(503, {}), "lost", (429, {})]
    folder = download("user/down", ["a.txt"], cache_dir=tmp_path)
    assert (folder / "a.txt").read_bytes() == b"a" and 3.0 in pauses
    assert not hub.hub.faults["/user/down/resolve/"]


def test_a_reply_that_lacks_what_the_client_looks_for_is_one_error_of_ours(faulty):
    # Red for: FAILURES without KeyError, which huggingface_hub raises for a 409 without the address of the repository.
    faulty("/api/repos/create", (409, {}))
    with pytest.raises(SwagError, match="Nothing was committed to 'user/bare'"):
        upload({"a.txt": b"a"}, "user/bare", commit_message="a")
