"""Conditioning in a file: what a text encoder made once need not be made again.

The file is safetensors: the tensors one after the other, and in its metadata a JSON tree with the shape of the
conditioning, in which a tensor is its name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..messages import short

FORMAT = "dit-accel/conditioning"
VERSION = 1
_PAIRS = "a list of pairs of a tensor and a dictionary of options"


def save(path: Path, conditioning: list[Any]) -> None:
    """Writes ComfyUI's conditioning, a list of [tensor, options], to path: all of it or nothing.

    Every tensor keeps its dtype and shape; options may hold tensors, nested tensors, numbers, text, lists, tuples
    and dictionaries of these. Raises ValueError naming the entry that is something else, such as a ControlNet.
    """
    conditioning = [list(entry) for entry in conditioning]
    if not _is_conditioning(conditioning):
        raise ValueError(f"conditioning: expected {_PAIRS}, found something else")
    tensors: dict[str, Tensor] = {}
    tree = _to_tree(conditioning, "conditioning", tensors)
    files.write(path, tensors, FORMAT, VERSION, tree=json.dumps(tree))


def load(path: Path) -> list[Any]:
    """The conditioning in the file, its tensors on the CPU. Raises ValueError naming the file, what was expected and
    what was found, when it is no conditioning file or not whole."""
    tensors, metadata = files.read(path, FORMAT, VERSION)
    try:
        tree = files.parse_json(metadata["tree"])
        conditioning = _from_tree(tree, tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a whole conditioning file, found a broken tree ({error!r})") from error
    if not _is_conditioning(conditioning):
        raise ValueError(f"{path}: expected {_PAIRS}, found something else")
    # Copies, once all has been checked: else the file stays mapped, and whoever changes it changes the tensors.
    return _from_tree(tree, {name: tensor.clone() for name, tensor in tensors.items()})


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, list)
        and len(entry) == 2
        and (isinstance(entry[0], Tensor) or _is_nested(entry[0]))
        and isinstance(entry[1], dict)
        for entry in value
    )


def _is_nested(value: Any) -> bool:
    """Whether it is ComfyUI's NestedTensor."""
    return not isinstance(value, Tensor) and getattr(value, "is_nested", False)


def _to_tree(value: Any, where: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and not value.is_complex():
        name = f"{len(tensors):05d}"
        # A copy: safetensors refuses two names for one memory.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if _is_nested(value):
        return {"nested": [_to_tree(part, where, tensors) for part in value.unbind()]}
    if type(value) in (list, tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_to_tree(part, f"{where}[{index}]", tensors) for index, part in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _to_tree(part, f"{where}[{key!r}]", tensors) for key, part in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ValueError(
        f"{where}: expected tensors, numbers, text, or lists and dictionaries (by name) of them; found "
        f"{_described(value)}, which cannot be kept in a file. Save the conditioning before the node that adds it"
    )


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dictionary with the key {next(key for key in value if not isinstance(key, str))!r}"
    if isinstance(value, Tensor):
        return f"a {type(value).__name__} of {value.dtype}, {value.layout}"
    return type(value).__name__


def _from_tree(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    if kind == "dict":
        return {key: _from_tree(part, tensors) for key, part in content.items()}
    if not isinstance(content, list):
        raise TypeError(f"{kind} of {short(content)}")
    parts = [_from_tree(part, tensors) for part in content]
    if kind == "nested":
        from comfy.nested_tensor import NestedTensor

        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise TypeError(f"nested {short(content)}")
        return NestedTensor(parts)
    return {"list": list, "tuple": tuple}[kind](parts)
