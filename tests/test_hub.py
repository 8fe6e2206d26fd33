import socket

import pytest

from swag_trainer import SwagError, SwagPosterior
from swag_trainer.hub import upload


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
