"""Captures: q, k and v as a trained model computed them on real frames, in a safetensors file.

The tensors of one attention call are named `<call>.q`, `<call>.k` and `<call>.v`; the metadata holds the token
layout, what each call was, and where everything came from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import files
from ..attention.layout import TokenLayout
from ..messages import short

FORMAT = "dit-accel/capture"
VERSION = 1
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Capture(NamedTuple):
    """One self-attention call. q, k, v: [B, H, N, D] after norm and rotary positions, N = layout.total; block: the
    transformer block, counted through; sigma: the noise level of the step."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout
    block: int
    sigma: float

    def sha256(self) -> str:
        """Of the three tensors' bytes."""
        return sha256(*self[:3])


def sha256(*tensors: Tensor) -> str:
    """Of the bytes of tensors on the CPU, one after the other."""
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(x.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write(path: Path, captures: Sequence[Capture], provenance: dict[str, Any]) -> None:
    """Writes captures of one layout to path, all or nothing. provenance: model, clip and settings, kept as JSON."""
    (layout,) = {capture.layout for capture in captures}
    tensors = {
        f"{number}.{name}": x
        for number, capture in enumerate(captures)
        for name, x in zip("qkv", capture[:3], strict=True)
    }
    files.write(
        path,
        tensors,
        FORMAT,
        VERSION,
        layout=json.dumps(dataclasses.asdict(layout)),
        calls=json.dumps([{"block": capture.block, "sigma": capture.sigma} for capture in captures]),
        provenance=json.dumps(provenance),
    )


def read(path: Path) -> tuple[list[Capture], dict[str, Any]]:
    """The captures in a file, at least one, and their provenance. Raises ValueError naming the file, what was expected
    and what was found, when it is something else, or not whole."""
    tensors, metadata = files.read(path, FORMAT, VERSION)
    try:
        captures = _captures(tensors, metadata)
        provenance = _parsed(metadata, "provenance", dict)
        model = provenance.get("model", {})
        right = isinstance(model, dict) and isinstance(model.get("file", ""), str)
        _need(right, "a model with the name of its file", "provenance", model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # Copies, once all has been checked: else the file stays mapped, and whoever changes it changes the tensors.
    return [Capture(*(x.clone() for x in capture[:3]), *capture[3:]) for capture in captures], provenance


def _captures(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[Capture]:
    layout = _layout(_parsed(metadata, "layout", dict))
    calls = _parsed(metadata, "calls", list)
    if not calls:
        raise ValueError("expected at least one captured call, found none")
    captures = []
    for number, call in enumerate(calls):
        right = isinstance(call, dict) and _is_count(call.get("block")) and _is_number(call.get("sigma"))
        _need(right, "a block number and a sigma", f"call {number}", call)
        names = [f"{number}.{name}" for name in "qkv"]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"expected a tensor {missing[0]}, found a broken one without it")
        q, k, v = (tensors[name] for name in names)
        if not (q.shape == k.shape == v.shape and q.ndim == 4 and q.shape[2] == layout.total):
            shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
            raise ValueError(f"expected q, k and v of one shape [B, H, {layout.total}, D], found {shapes}")
        dtypes = {x.dtype for x in (q, k, v)}
        if len(dtypes) > 1 or q.dtype not in FLOATS or not q.numel():
            found = f"{' and '.join(sorted(map(str, dtypes)))} {tuple(q.shape)}"
            raise ValueError(f"{names[0]}: expected numbers of one float dtype, found {found}")
        captures.append(Capture(q, k, v, layout, call["block"], float(call["sigma"])))
    return captures


def _layout(fields: dict[str, Any]) -> TokenLayout:
    grid = fields.get("grid")
    right = isinstance(grid, list) and len(grid) == 3 and all(_is_count(size) and size for size in grid)
    _need(right, "three sizes of a grid", "layout", grid)
    ends = fields.get("prefix"), fields.get("suffix")
    _need(all(map(_is_count, ends)), "numbers of tokens before and after the video", "layout", ends)
    return TokenLayout(tuple(grid), *ends)


def _parsed(metadata: Mapping[str, str], name: str, kind: type) -> Any:
    """The JSON of a field of the metadata."""
    try:
        content = files.parse_json(metadata.get(name, ""))
    except ValueError as error:
        raise ValueError(f"{name}: expected JSON, found {error}") from error
    _need(isinstance(content, kind), f"a {kind.__name__}", name, content)
    return content


def _need(right: bool, expected: str, where: str, found: object) -> None:
    if not right:
        raise ValueError(f"{where}: expected {expected}, found {short(found)}")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
