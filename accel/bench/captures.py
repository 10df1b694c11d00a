"""Captures: q, k and v as a trained model computed them on real frames, in a safetensors file.

The tensors of one attention call are named `<call>.q`, `<call>.k` and `<call>.v`; the metadata holds the token
layout, what each call was, and where everything came from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import files
from ..attention.layout import TokenLayout

FORMAT = "dit-accel/capture"
VERSION = 1


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
    """The captures in a file, at least one, and their provenance. Raises ValueError naming the file when it is
    something else, or not whole."""
    tensors, metadata = files.read(path, FORMAT, VERSION)
    try:
        fields = json.loads(metadata["layout"])
        layout = TokenLayout(tuple(fields["grid"]), fields["prefix"], fields["suffix"])
        captures = [
            Capture(*(tensors[f"{number}.{name}"] for name in "qkv"), layout, call["block"], call["sigma"])
            for number, call in enumerate(json.loads(metadata["calls"]))
        ]
        provenance = dict(json.loads(metadata["provenance"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a whole capture, found a broken one ({error!r})") from error
    for capture in captures:
        q, k, v = capture[:3]
        if not (q.shape == k.shape == v.shape and q.ndim == 4 and q.shape[2] == layout.total):
            shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
            raise ValueError(f"{path}: expected q, k and v of one shape [B, H, {layout.total}, D], found {shapes}")
    if not captures:
        raise ValueError(f"{path}: expected at least one captured call, found none")
    return captures, provenance
