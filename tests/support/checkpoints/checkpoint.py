"""What a tiny checkpoint is made from, and the sizes that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TEXT_WIDTH = 64
HEADS = 2
WIDTH = HEADS * 128


@dataclass(frozen=True)
class Checkpoint:
    """network: class in comfy.ldm. settings: its arguments. calls: video self-attention calls of one forward that
    may become sparse. seed: of the values. config: settings that ComfyUI does not read from the tensors, but from the
    file's metadata. without: how the names of tensors start that the file lacks."""

    network: str
    settings: dict[str, Any]
    calls: int
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
