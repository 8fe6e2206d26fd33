import errno
import json
import os
import struct
import tracemalloc

import pytest
import safetensors.torch
import torch

from swag_trainer.errors import PosteriorFormatError, PosteriorNotFoundError, SwagError
from swag_trainer.posterior import storage, tensor_file
from swag_trainer.posterior.atomic import write_bytes
from swag_trainer.posterior.regular_file import read_bytes
from swag_trainer.posterior.storage import content_digest, read_file, write_file
from swag_trainer.posterior.tensor_file import check_names, file_content, read_tensors

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


def test_the_file_is_byte_for_byte_what_safetensors_writes():
    # Red for: another order, padding or header than the format's own library has; views written in the order of their memory.
    whole = torch.randn(4, 6)
    tensors = {"b": whole[:, 1:3], "a": whole.T, "c": torch.tensor(2.5), "d": torch.zeros(0, 3), "é: 1": torch.arange(3.0)}
    expected = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"}
    )
    assert b"".join(file_content(tensors, {"format": "pt"})) == expected


def test_every_dtype_of_an_adapter_comes_back(tmp_path):
    # Red for: a dtype missing from the table, or tensors that are not aligned after narrower ones.
    dtypes = (torch.bool, torch.int8, torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
    tensors = {f"a{index}": torch.tensor([1, 0, 1]).to(dtype) for index, dtype in enumerate(dtypes)}
    write_bytes(tmp_path / "x", file_content(tensors, {}))
    found, _ = read_tensors(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_tensors_that_another_writer_did_not_align_are_read(tmp_path):
    # Red for: an error of torch, whose views must be aligned.
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    (tmp_path / "x").write_bytes(raw(header, b"\7" + struct.pack("<f", 1.5)))
    tensors, _ = read_tensors(tmp_path / "x")
    assert (tensors["a"].item(), tensors["b"].item()) == (7, 1.5)


@pytest.mark.parametrize("key", ["head:main.weight", "ä b.weight", "x" * 501])
def test_a_printable_name_can_be_saved(tmp_path, key):
    # Red for: names refused that a ModuleDict may have.
    check_names([key])
    write_file(tmp_path / "x", {f"deviations/{key}": torch.ones(1)}, {})
    assert list(read_file(tmp_path / "x")[0]) == [f"deviations/{key}"]


@pytest.mark.parametrize("key", ["a\nb", "a\u202eb", "..", "x" * 502, "\ud800", ""])
def test_a_name_that_no_file_can_have_is_refused_beforehand(key):
    # Red for: a check that accepts what reading refuses.
    with pytest.raises(SwagError, match="could not be saved"):
        check_names([key])


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
        {"a\u202eb": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"x" * 600: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}},
        {"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}},
        {"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}},
        {name: {"dtype": "U8", "shape": [3], "data_offsets": list(span)} for name, span in {"a": (0, 3), "b": (1, 4)}.items()},
        {"__metadata__": {"a": 1}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": [], "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        b"[]",
        b"[" * 5000,
        b"\xff\xfe",
    ],
)
def test_a_hostile_header_is_refused_in_one_short_sentence(path, content):
    # Red for: duplicate names (the last wins in safetensors), names that are paths or escape codes, a TypeError on huge shapes, and
    # for each check of an entry left out: tensors that overlap, leave holes or end early, other types than the format has.
    path.write_bytes(raw(content, bytes(4)))
    with pytest.raises(PosteriorFormatError) as caught:
        read_tensors(path)
    assert len(str(caught.value)) < 700
    assert "\x1b" not in str(caught.value)


def test_a_large_header_is_refused_before_it_is_parsed(path, monkeypatch):
    # Red for: parsing first; 13 MB of empty tensors took 3.4 s and 277 MB.
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", 20)
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
    with pytest.raises(PosteriorFormatError, match=r"version 7.*reads version 2"):
        read_file(path)


def test_a_safetensors_file_of_another_program_and_a_missing_one_are_told_apart(tmp_path):
    # Red for: "does not exist" said of a file that does.
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(PosteriorFormatError, match="did not write"):
        read_file(tmp_path / "other.safetensors")
    with pytest.raises(PosteriorNotFoundError, match="missing"):
        read_file(tmp_path / "missing.safetensors")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    # Red for: open() on a FIFO, which blocks for ever.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PosteriorFormatError, match="regular file"):
        read_tensors(tmp_path / "pipe")


def test_a_sparse_file_takes_no_memory_and_one_that_fails_in_the_middle_is_refused(tmp_path, monkeypatch):
    # Red for: memory for 20 GiB that take no place on the disk, before the header is looked at; an OSError of the system as it is.
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(20 * 1024**3)
    monkeypatch.setattr(tensor_file, "_read_bytes", lambda *arguments: pytest.fail("read"))
    with pytest.raises(PosteriorFormatError, match="damaged header"):
        read_tensors(tmp_path / "sparse")
    monkeypatch.undo()
    (tmp_path / "memory").symlink_to("/proc/self/mem")
    with pytest.raises(PosteriorFormatError, match="memory"):
        read_tensors(tmp_path / "memory")


def test_a_small_file_is_read_with_little_memory_whatever_the_limit(tmp_path):
    # Red for: read(limit), for which Python takes as much memory as the limit allows.
    (tmp_path / "small").write_bytes(b"{}")
    tracemalloc.start()
    read_bytes(tmp_path / "small", max_bytes=256 * 1024**2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1024**2


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
