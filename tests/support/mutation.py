"""Files broken in the ways that files break, and that people break them: JSON texts and safetensors files, from a
seeded random generator."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

HOSTILE = [
    *(None, True, False, 0, -1, 7, 2**70, -0.5, 1e308, "", "x", "\ud800", "a" * 5000, [], {}, [None], [[1], "x"]),
    {"a": {"b": []}},
    list(range(300)),
]
# What Python writes in other words, or not at all.
RAW = [
    *("NaN", "-Infinity", "1e999", "9" * 400, "-" + "9" * 5000, "01", "tru", "'x'", ""),
    "[" * 3000 + "]" * 3000,
    '{"a":' * 500 + "1" + "}" * 500,
    "[" * 100_000,
]
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I8", "U8", "BOOL", "F4", "C64", "U32", "X", 5]
SHAPES = [[], [0], [1], [-1], [2**63, 0], [0, 2**40, 2**40], [3, 3], [1] * 70, ["3"], None, [1.5]]
NUMBERS = ["0", "1", "7", "100000", "9" * 20, "9" * 5000, "-1", "\u0663", "x", ""]
CASTS = [torch.float64, torch.float32, torch.float16, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.bool]


def json_mutant(random: Random, content: Any) -> bytes:
    """The text of `content` with one to three of its values changed, or broken as a text."""
    content = json.loads(json.dumps(content))
    marks: dict[str, str] = {}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = _changed(random, content, marks)
    text = json.dumps(content)
    for mark, raw in marks.items():
        text = text.replace(f'"{mark}"', raw)
    return bytes_mutant(random, text.encode()) if random.random() < 0.25 else text.encode()


def bytes_mutant(random: Random, content: bytes) -> bytes:
    """Bytes changed, cut off, repeated, added, or others altogether."""
    place = random.randrange(len(content) + 1)
    other = random.randbytes(random.choice((1, 1, 3, 40)))
    return random.choice(
        (
            lambda: content[:place],
            lambda: content[place:],
            lambda: content[:place] + other + content[place:],
            lambda: content[:place] + other + content[place + len(other) :],
            lambda: content[:place] + content[place + 1 :],
            lambda: content[:place] + content[: place // 2] + content[place:],
            lambda: content + other,
            lambda: content + content,
            lambda: other,
            lambda: b"",
        )
    )()


def safetensors_mutant(random: Random, content: bytes) -> bytes:
    """A file with changes in its tensors, their list, its metadata, or its bytes."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    way = random.choice((_tensors, _tensors, _tensors, _entries, _metadata, _metadata, _header_bytes, _any_bytes))
    return way(random, header, data)


def _changed(random: Random, content: Any, marks: dict[str, str]) -> Any:
    """`content` with one value replaced, left out, renamed or repeated. marks: what is to be written in the place of a
    text, by that text."""
    nodes = [node for node in _containers(content) if node]
    if not nodes or random.random() < 0.03:
        return _hostile(random, marks)
    node = random.choice(nodes)
    key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
    way = random.randrange(6)
    if way < 3:
        node[key] = _hostile(random, marks)
    elif way == 3:
        del node[key]
    elif isinstance(node, dict):
        node[random.choice((key.upper(), key + "x", "", str(random.random())))] = node.pop(key)
    else:
        node.insert(key, node[key])
    return content


def _hostile(random: Random, marks: dict[str, str]) -> Any:
    if random.random() < 0.3:
        mark = f"mark {len(marks)}"
        marks[mark] = random.choice(RAW)
        return mark
    return json.loads(json.dumps(random.choice(HOSTILE)))


def _containers(content: Any) -> list[Any]:
    if not isinstance(content, dict | list):
        return []
    children = content.values() if isinstance(content, dict) else content
    return [content, *(node for child in children for node in _containers(child))]


def _packed(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _tensors(random: Random, header: dict[str, Any], data: bytes) -> bytes:
    """A file that is one, of other tensors."""
    tensors = load(_packed(header, data))
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(list(tensors))
        random.choice((_retyped, _reshaped, _renamed, _renumbered, _dropped, _spoilt))(random, tensors, name)
        if not tensors:
            break
    contiguous = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return save(contiguous, metadata=header.get("__metadata__"))


def _retyped(random: Random, tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.float32).to(random.choice(CASTS))


def _reshaped(random: Random, tensors: dict[str, Tensor], name: str) -> None:
    tensor = tensors[name]
    ways = (
        lambda: tensor.flatten(),
        lambda: tensor[None],
        lambda: tensor[:0],
        lambda: tensor.flatten()[:1].reshape(()),
    )
    ways += (lambda: tensor.mT, lambda: torch.cat([tensor, tensor]), lambda: tensor[: len(tensor) // 2])
    try:
        tensors[name] = random.choice(ways)()
    except (IndexError, RuntimeError, TypeError):  # Of a number, or one of no elements.
        tensors[name] = torch.zeros(random.choice(((), (0,), (1, 1), (5, 3, 2))), dtype=tensor.dtype)


def _renamed(random: Random, tensors: dict[str, Tensor], name: str) -> None:
    other = random.choice((f"module.{name}", f"{name}x", name.rpartition(".")[2], name.upper(), "", f"a.{name}"))
    tensors[other] = tensors.pop(name)


def _renumbered(random: Random, tensors: dict[str, Tensor], name: str) -> None:
    parts = name.split(".")
    places = [place for place, part in enumerate(parts) if part.isdecimal()]
    if places:
        parts[random.choice(places)] = random.choice(NUMBERS)
    tensor = tensors[name] if random.random() < 0.5 else tensors.pop(name)
    tensors[".".join(parts)] = tensor


def _dropped(random: Random, tensors: dict[str, Tensor], name: str) -> None:
    """It, or all of its layer or part."""
    start = name.rsplit(".", random.choice((0, 0, 1, 2, 4)))[0]
    for other in [other for other in tensors if other.startswith(start)]:
        del tensors[other]


def _spoilt(random: Random, tensors: dict[str, Tensor], name: str) -> None:
    tensor = tensors[name].clone()
    if tensor.numel():
        tensor.view(-1).view(torch.uint8)[random.randrange(tensor.nbytes)] = 0xFF
    tensors[name] = tensor


def _entries(random: Random, header: dict[str, Any], data: bytes) -> bytes:
    """A list of tensors that does not fit the bytes behind it."""
    name = random.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    start, end = entry["data_offsets"]
    offsets = [[start, end + 1], [end, start], [start, 2**64], [start, 2**62], [-1, end], [start], None, "x", [0, 0]]
    change = random.choice(
        (
            {"dtype": random.choice(DTYPES)},
            {"shape": random.choice(SHAPES)},
            {"data_offsets": random.choice(offsets)},
            {"data_offsets": [start, start], "shape": random.choice(([0], [0, 2**62], [2**63, 0], [2**40, 0, 2**40]))},
        )
    )
    return _packed(header | {name: entry | change}, data)


def _metadata(random: Random, header: dict[str, Any], data: bytes) -> bytes:
    """JSON in the metadata is changed as JSON."""
    metadata = dict(header.get("__metadata__") or {"config": "{}"})
    name = random.choice(list(metadata))
    try:
        metadata[name] = json_mutant(random, json.loads(metadata[name])).decode(errors="replace")
    except ValueError:
        metadata[name] = random.choice(["", "x", "9" * 400, "0", "[" * 100_000, '"\\ud800"', "a" * 5000])
    if random.random() < 0.15:
        metadata[random.choice(list(metadata))] = random.choice([None, 5, [], {}])
    if random.random() < 0.15:
        del metadata[name]
    return _packed(header | {"__metadata__": metadata}, data)


def _header_bytes(random: Random, header: dict[str, Any], data: bytes) -> bytes:
    text = bytes_mutant(random, json.dumps(header).encode())
    length = random.choice((len(text), len(text), len(text) + 1, 0, 2**63, 2**40, 10**8))
    return length.to_bytes(8, "little") + text + data


def _any_bytes(random: Random, header: dict[str, Any], data: bytes) -> bytes:
    return bytes_mutant(random, _packed(header, data))
