"""Mutations of bytes, JSON values and safetensors files, and what can stand in the place of a file."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Values at which readers break: limits of types, of floats and of recursion, paths, code, escape codes, patterns, and other types.
NUMBERS = [0, -1, 1, 2, 1.5, -0.0, 1e-300, 1e18, 1e19, 1e38, 1e39, 1e308, 2**31, 2**53, 2**63, -(2**63), 10**20, 10**400]
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]
TEXT = [
    "",
    " ",
    "null",
    "NaN",
    "\x00",
    "\x1b[31mred\x1b[0m",
    "\u202eabc",
    "\ud800",
    "a" * 100_000,
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "file:///etc/passwd",
    "https://evil.example/x",
    "~",
    "(a+)+$",
    r"(bert\.)?((a|e|n|c|o|d|r|\.)+)+(\d|\.|[a-z])*query_",
    "(?:" * 500,
    "{{ ''.__class__ }}",
    "<script>alert(1)</script>",
    "!!python/object/apply:os.system [true]",
    "__class__",
    "LORA",
    "XLORA",
    "bert",
    "é" * 40,
]


def hostile_value(rng: random.Random, *, finite: bool = False) -> Any:
    """Return a value that a reader may not expect, of any type of JSON."""
    kind = rng.randrange(8)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind == 2 and not finite:
        return rng.choice(NOT_FINITE)
    if kind < 5:
        return rng.choice(TEXT)
    if kind == 5:
        return rng.choice([None, True, False])
    if kind == 6:
        return rng.choice([[], [None], [[[]]], list(range(50)), ["a"] * 2000, [1e300, -1e300], nested(rng.choice([40, 250]))])
    return rng.choice([{}, {"": ""}, {"a": {"b": []}}, {str(number): number for number in range(300)}, {"__proto__": 1}])


def nested(depth: int) -> Any:
    """Return a list in a list in a list ..."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def mutated_json(value: Any, rng: random.Random, *, times: int | None = None) -> Any:
    """Return a copy of a JSON value that differs in one to three places."""
    value = copy.deepcopy(value)
    for _ in range(times or rng.choice([1, 1, 1, 2, 3])):
        value = _one_change(value, rng)
    return value


def _one_change(value: Any, rng: random.Random) -> Any:
    places = [()] + list(_places(value))
    place = rng.choice(places)
    if not place:
        return hostile_value(rng) if rng.random() < 0.2 or not isinstance(value, (dict, list)) else _changed_inside(value, rng)
    parent = value
    for step in place[:-1]:
        parent = parent[step]
    last, old = place[-1], parent[place[-1]]
    kind = rng.randrange(10)
    if kind < 4:
        parent[last] = hostile_value(rng)
    elif kind < 6 and isinstance(old, (int, float)) and not isinstance(old, bool) and abs(old) < 2**1000:
        parent[last] = rng.choice(
            [old + 1, old - 1, -old, old * 2, old * 1e10, old / 2, str(old), bool(old), [old], float(old)]
        )
    elif kind < 6 and isinstance(old, str):
        parent[last] = rng.choice(
            [old + "x", old[:-1], old.upper(), old * 50, [old], old.encode("utf-8", "replace").hex(), old[::-1]]
        )
    elif kind < 6 and isinstance(old, (dict, list)):
        parent[last] = _changed_inside(old, rng)
    elif kind == 6:
        del parent[last]
    elif kind == 7:  # a value from elsewhere in the document
        other = value
        for step in rng.choice(places):
            other = other[step]
        parent[last] = copy.deepcopy(other)
    elif kind == 8 and isinstance(parent, dict):
        parent[rng.choice([*map(str, parent), "x", "", "code", rng.choice(TEXT)[:50]])] = parent.pop(last)
    elif isinstance(parent, dict):
        parent[rng.choice(["x", "kind", "auto_map", "custom_pipelines", "r", "scale", rng.choice(TEXT)[:600]])] = hostile_value(
            rng
        )
    else:
        parent.insert(last, hostile_value(rng))
    return value


def _changed_inside(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list):
        return rng.choice([[], value * 2, value[::-1], value[:1], [*value, hostile_value(rng)]])
    items = list(value.items())
    rng.shuffle(items)
    return rng.choice([{}, dict(items), dict(items[: len(items) // 2]), {**value, "x": hostile_value(rng)}, [value]])


def _places(value: Any, place: tuple = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield (*place, step)
        yield from _places(item, (*place, step))


def json_text(value: Any, rng: random.Random) -> bytes:
    """Return a JSON value as a file holds it, sometimes spelt as Python's own writer never does."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    kind = rng.randrange(12)
    if kind == 0:
        text = json.dumps(value, indent=8)
    elif kind == 1 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ', "twice": 1, "twice": 2}'
    elif kind == 2:
        return text.encode("utf-16", "surrogatepass")
    elif kind == 3:
        return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass")
    elif kind == 4:
        return b"[" * 100_000
    elif kind == 5:
        text = text + text
    return text.encode("utf-8", "surrogatepass")


def mutated_bytes(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """Return bytes that differ from a file's as damage, or a fuzzer without knowledge, would have it."""
    result, size = bytearray(data), len(data)
    place = rng.randrange(size + 1) if rng.random() < 0.5 else min(size, rng.randrange(400))
    kind = rng.randrange(12)
    if kind < 4 and size:
        for _ in range(rng.choice([1, 1, 2, 8])):
            result[rng.randrange(min(size, 4000)) if rng.random() < 0.6 else rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 4:
        del result[place:]
    elif kind == 5:
        result += rng.choice([b"\0", rng.randbytes(9), data, b" " * 4096])
    elif kind == 6:
        result[place : place + rng.choice([1, 8, 64, 4096])] = b""
    elif kind == 7:
        length = rng.choice([1, 8, 64, 512])
        result[place : place + length] = bytes(min(length, max(0, size - place)))
    elif kind == 8:
        result[place:place] = rng.choice([b"\xff" * 8, rng.randbytes(16), b'"', b"{", b"\n", b"\\u0000", data[:64]])
    elif kind == 9:
        result[:8] = struct.pack("<Q", rng.choice([0, 1, 7, size, max(0, size - 8), 2**24, 2**31, 2**32, 2**63, 2**64 - 1]))
    elif kind == 10:
        result = bytearray(data[:place] + other[place:])
    else:
        result = bytearray(rng.choice([b"", b"PK\3\4", b"\x80\x04.", rng.randbytes(200), b"{}", b"null", other or b"[]"]))
    return bytes(result)


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and data of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: Any, data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with any header."""
    text = json_text(header, rng)
    return struct.pack("<Q", len(text)) + text + data


def mutated_tensors(tensors: dict[str, Tensor], rng: random.Random) -> dict[str, Tensor]:
    """Return tensors with one to three changes of value, shape, dtype or name."""
    changed = dict(tensors)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if not changed:
            break
        name = rng.choice(sorted(changed))
        tensor, kind = changed[name].clone(), rng.randrange(9)
        if kind < 3 and tensor.numel():
            flat = tensor.reshape(-1)
            value = rng.choice([*NOT_FINITE, 1e18, 9e17, 1e30, 3e38, -1.0, -1e-40, 0.0, 1e-45, 1.0])
            count = rng.choice([1, 1, flat.numel()])
            if tensor.is_floating_point():
                flat[torch.tensor(rng.sample(range(flat.numel()), count))] = value
            changed[name] = flat.reshape(tensor.shape)
        elif kind == 3:
            changed[name] = rng.choice(
                [
                    tensor.reshape(-1),
                    tensor[None],
                    tensor.T if tensor.dim() == 2 else tensor,
                    tensor.clone()[torch.arange(len(tensor)).flip(0)] if tensor.dim() and tensor.dtype.itemsize > 1 else tensor,
                ]
            )
        elif kind == 4 and tensor.dim() and len(tensor):
            changed[name] = rng.choice([tensor[:-1], tensor[:0], torch.cat([tensor, tensor]), tensor[:1]])
        elif kind == 5:
            dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn]
            changed[name] = tensor.float().to(rng.choice(dtypes))
        elif kind == 6:
            other = rng.choice(sorted(changed))
            part, _, key = name.partition("/")
            renamed = rng.choice(
                [other, key or "x", f"x/{key}", f"{part}/", f"{part}/x", name + "x", "rotation", f"initial/{key}"]
            )
            changed[renamed] = changed.pop(name)
        elif kind == 7:
            del changed[name]
        else:
            changed[rng.choice(["x", "mean/x", "ood/means", "initial/x", "pristine/x", "member-9/mean/x"])] = tensor
    return {name: tensor.contiguous() for name, tensor in changed.items()}


def put_special(path: Path, rng: random.Random, *, smallest: int = 600 * 1024**2) -> None:
    """Put something that is no regular, readable file in the place of a file; a sparse file has at least ``smallest`` bytes."""
    path.unlink(missing_ok=True)
    kind = rng.randrange(8)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.symlink_to("/dev/stdin")
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.mkdir()
    elif kind == 5:
        with open(path, "wb") as file:
            file.truncate(rng.choice([60 * 1024**3, 20 * 1024**3, smallest]))
    elif kind == 6:
        path.symlink_to("/proc/self/mem")
    # else: it is missing
