"""Damaged and malicious files, a different one for each number: seeded, so that a case can be made again."""

import json
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Random = np.random.RandomState

# What stands in the place of a value.
VALUES: list[Any] = [
    0, -1, 1, 2, 3, 500, 10_000, 10**6, 10**9, 10**12, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf,
    True, False, None, "", "0", "cpu", "a" * 10_000, "a\0b", "\x1b[31m\n", "../..", "folder:/", "\ud800", [], {}, [0],
    [1, 2], [10**6] * 3, [[[]]], {"a": 1}, {"config": {}}, "bf16", "support", "batch", "average", "linear", "adam",
    "pixels", "finetune", "meta-lstm", "matching-net-fce",
]  # fmt: skip
NUMBERS = [math.nan, math.inf, 3e38, -3e38, 1e-45, 0.0]  # of a tensor
DTYPES = ["F64", "F16", "BF16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", None, 5]


def mutated(content: bytes, random: Random) -> bytes:
    """A checkpoint with one to three changes."""
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        change = CHECKPOINT_CHANGES[random.randint(len(CHECKPOINT_CHANGES))]
        try:
            content = change(content, random)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error, RecursionError):
            content = mutated_bytes(content, random)  # no longer a checkpoint
    return content


def mutated_text(content: bytes, random: Random) -> bytes:
    """A file of JSON, or of lines of it, with one to three changes."""
    for _ in range(random.choice([1, 1, 2, 3])):
        try:
            content = (_value if random.rand() < 0.6 else mutated_bytes)(content, random)
        except (ValueError, IndexError):
            content = mutated_bytes(content, random)
    return content


# Bytes.


def mutated_bytes(content: bytes, random: Random) -> bytes:
    """Flipped, cut, zeroed, repeated or strange bytes."""
    place = random.randint(len(content) + 1)
    length = int(random.choice([1, 4, 100]))
    match random.randint(6):
        case 0:
            return content[:place]
        case 1:
            return content[:place] + random.bytes(length) + content[place:]
        case 2:
            return content[:place] + bytes(length) + content[place + length :]
        case 3:
            return content[:place] + content[place : place + length] * 3 + content[place + length :]
        case 4:
            return content[:place] + b"\xff\xfe" + content[place:]
    flipped = bytearray(content)
    for each in random.randint(len(content) or 1, size=length) if content else []:
        flipped[each] ^= 1 << random.randint(8)
    return bytes(flipped)


def _header_bytes(content: bytes, random: Random) -> bytes:
    """Changed bytes of the header alone."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return mutated_bytes(content[:end], random) + content[end:]


def _length(content: bytes, random: Random) -> bytes:
    """Another length of the header."""
    length = int(random.choice([0, 1, 7, 2**20, 2**31, 2**62]))
    return struct.pack("<Q", length) + content[8:]


# The plain values.


def _value(content: bytes, random: Random) -> bytes:
    """Another value somewhere in JSON, or one that is missing, surplus, or in the place of another."""
    lines = content.split(b"\n")
    number = random.randint(len(lines) if content.startswith(b'{"') else 1)  # of metrics; other files are one value
    line = lines[number] if content.startswith(b'{"') else content
    values = json.loads(line)
    places = list(_places(values))
    part, name = places[random.randint(len(places))]
    match random.randint(8):
        case 0:
            del part[name]
        case 1 if isinstance(part, dict):
            part[["new", "classes", "at", "config", ""][random.randint(5)]] = VALUES[random.randint(len(VALUES))]
        case 2:
            other, its_name = places[random.randint(len(places))]
            part[name] = json.loads(json.dumps(other[its_name]))
        case 3 if isinstance(part[name], (int, float)):
            part[name] *= [-1, 10, 1000, 10**9, 0.5][random.randint(5)]
        case _:
            part[name] = VALUES[random.randint(len(VALUES))]
    changed = json.dumps(values).encode()
    if random.rand() < 0.02:
        changed = changed.replace(b": 1", b": 1e999").replace(b"{}", b"[" * 10**5)
    return b"\n".join([*lines[:number], changed, *lines[number + 1 :]]) if line is not content else changed


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in some JSON: what holds it, and under which name or number."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in list(items):
        yield values, name
        yield from _places(value)


def _meta(content: bytes, random: Random) -> bytes:
    """Another plain value."""
    header, data = _unpack(content)
    text = header["__metadata__"]["metalstm"].encode()
    header["__metadata__"]["metalstm"] = _value(b" " + text, random).decode()
    return _pack(header, data)


# The tensors.


def _tensor(content: bytes, random: Random) -> bytes:
    """A tensor with another name, type, shape or place, or none."""
    header, data = _unpack(content)
    name = _name(header, random)
    match random.randint(5):
        case 0:
            header[name]["dtype"] = DTYPES[random.randint(len(DTYPES))]
        case 1:
            shape = header[name]["shape"]
            part = random.randint(len(shape) + 1)
            header[name]["shape"] = [*shape[:part], int(random.choice([0, 1, 2, 2**31, 2**62])), *shape[part + 1 :]]
        case 2:
            header[name]["data_offsets"][random.randint(2)] += int(random.choice([-4, 4, 2**40]))
        case 3:
            header[name + "x"] = header.pop(name)
        case _:
            # Without its bytes, as a whole file would be.
            start, stop = header.pop(name)["data_offsets"]
            data = data[:start] + data[stop:]
            for each in header.values():
                if "data_offsets" in each and each["data_offsets"][0] >= stop:
                    each["data_offsets"] = [offset - (stop - start) for offset in each["data_offsets"]]
    return _pack(header, data)


def _numbers(content: bytes, random: Random) -> bytes:
    """Odd numbers in a tensor."""
    header, data = _unpack(content)
    tensor = header[_name(header, random)]
    start, stop = tensor["data_offsets"]
    kind = np.int64 if tensor["dtype"] == "I64" else np.float32
    values = np.frombuffer(data[start:stop], kind).copy()
    odd = [-1, 0, 1, 2, 10**6, 2**62] if kind is np.int64 else NUMBERS
    values[slice(None) if random.rand() < 0.3 else random.randint(len(values))] = odd[random.randint(len(odd))]
    return _pack(header, data[:start] + values.tobytes() + data[stop:])


def _name(header: dict[str, Any], random: Random) -> str:
    names = sorted(set(header) - {"__metadata__"})
    return names[random.randint(len(names))]


def _unpack(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def _pack(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


CHECKPOINT_CHANGES: list[Callable[[bytes, Random], bytes]] = [
    mutated_bytes, _header_bytes, _length, _meta, _meta, _meta, _meta, _meta, _meta, _tensor, _numbers
]  # fmt: skip
