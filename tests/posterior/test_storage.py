import errno
import json
import os
import struct

import pytest
import safetensors.torch
import torch

from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError
from swag_trainer.posterior import storage
from swag_trainer.posterior.storage import content_digest, read_file, read_tensors, write_bytes, write_file

TENSORS = {"mean/a": torch.arange(6.0).reshape(2, 3), "mean/b": torch.tensor(1.5), "deviations/a": torch.zeros(0, 2, 3)}
DOCUMENT = {"scale": 1.0, "labels": ["ä", "b"]}


@pytest.fixture
def path(tmp_path):
    write_file(tmp_path / "file.safetensors", TENSORS, DOCUMENT)
    return tmp_path / "file.safetensors"


def raw(header: dict | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_tensors_document_and_digest_come_back(path):
    # Red for: a shape, an empty tensor or a letter lost on the way.
    tensors, document, digest = read_file(path)
    assert document == DOCUMENT
    assert digest == content_digest(TENSORS, DOCUMENT)
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)


def test_safetensors_itself_opens_the_file(path):
    # Red for: a format of our own.
    assert torch.equal(safetensors.torch.load_file(path)["mean/a"], TENSORS["mean/a"])


def test_every_flipped_byte_is_noticed(path):
    # Red for: a file trusted without its digest, or a digest that leaves the document out.
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        try:
            tensors, document, _ = read_file(path)
        except PosteriorFormatError:
            continue
        # What is left are bits without meaning, such as the "pt" of safetensors' own metadata.
        assert document == DOCUMENT
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("length", [0, 7, 8, 60, -1])
def test_a_truncated_file_is_refused(path, length):
    # Red for: an error of safetensors, or of json, that escapes as it is.
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(PosteriorFormatError, match=r"file\.safetensors"):
        read_file(path)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        {"../../x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a\x1b[31m": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"x" * 600: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}},
        b"[]",
        b"[" * 5000,
        b"\xff\xfe",
    ],
)
def test_a_hostile_header_is_refused_in_one_short_sentence(path, content):
    # Red for: duplicate names (the last wins in safetensors), names that are paths or escape codes, a TypeError on huge shapes.
    path.write_bytes(raw(content, bytes(4)))
    with pytest.raises(PosteriorFormatError) as caught:
        read_tensors(path)
    assert len(str(caught.value)) < 700
    assert "\x1b" not in str(caught.value)


def test_a_large_header_is_refused_before_it_is_parsed(path, monkeypatch):
    # Red for: parsing first; 13 MB of empty tensors took 3.4 s and 277 MB.
    monkeypatch.setattr(storage, "MAX_HEADER_BYTES", 20)
    monkeypatch.setattr(json, "loads", lambda *args, **kwargs: pytest.fail("parsed"))
    with pytest.raises(PosteriorFormatError, match="header of"):
        read_tensors(path)


def test_values_that_are_not_finite_are_refused_by_name_and_number(path):
    # Red for: NaN in a posterior, which answers NaN for ever after.
    write_file(path, {"mean/a": torch.tensor([1.0, float("nan"), float("inf")])}, {})
    with pytest.raises(PosteriorFormatError, match=r"2 of 3 values of 'mean/a'"):
        read_file(path)


def test_a_newer_format_is_refused_with_both_versions(path, monkeypatch):
    # Red for: reading what a later version means by the same words.
    monkeypatch.setattr(storage, "FORMAT_VERSION", 7)
    write_file(path, TENSORS, DOCUMENT)
    monkeypatch.undo()
    with pytest.raises(PosteriorFormatError, match=r"version 7.*reads version 1"):
        read_file(path)


def test_a_foreign_safetensors_file_and_a_missing_one_are_told_apart(tmp_path):
    # Red for: "does not exist" said of a file that does.
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(PosteriorFormatError, match="did not write"):
        read_file(tmp_path / "foreign.safetensors")
    with pytest.raises(PosteriorNotFoundError, match="missing"):
        read_file(tmp_path / "missing.safetensors")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    # Red for: open() on a FIFO, which blocks for ever.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PosteriorFormatError, match="regular file"):
        read_tensors(tmp_path / "pipe")


def test_what_was_read_does_not_change_with_the_file(path):
    # Red for: load_file, whose tensors stay mapped: truncating the file later kills the process.
    tensors, _, _ = read_file(path)
    path.write_bytes(b"")
    assert torch.equal(tensors["mean/a"], TENSORS["mean/a"])


def test_a_full_disk_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    # Red for: writing in place, a temporary file left behind, an error without the path.
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*file\.safetensors") as caught:
        write_file(path, {"mean/a": torch.ones(3)}, {})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    # Red for: cleaning up after OSError only.
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_file(path, {}, {})
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_the_mode_follows_the_umask_and_the_data_is_flushed_before_the_rename(tmp_path, monkeypatch):
    # Red for: 0600 whatever the umask (save_file), or a rename of bytes that are not on the disk yet.
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *args: (order.append("rename"), replace(*args)))
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "x", b"1")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert order == ["fsync", "rename", "fsync"]


def test_the_digest_tells_name_dtype_shape_and_bytes_apart():
    # Red for: hashing the bytes alone.
    tensor = torch.zeros(4)
    digests = {
        content_digest({"a": tensor}),
        content_digest({"b": tensor}),
        content_digest({"a": tensor.reshape(2, 2)}),
        content_digest({"a": tensor.view(torch.int32)}),
        content_digest({"a": tensor + 1}),
        content_digest({"a": tensor}, {}),
    }
    assert len(digests) == 6
