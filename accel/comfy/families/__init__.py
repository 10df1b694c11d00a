"""The model families: one row says how to find the video tokens of a forward and its attention calls.

A model whose class has no row runs dense. To add one, write a row in the file of its maker; nothing else changes.
"""

from __future__ import annotations

from . import cogvideo, cosmos, genmo, hunyuan, kandinsky, lightricks, ltx2, minimax, wan
from .family import Family, ForwardInputs

__all__ = ["FAMILIES", "Family", "ForwardInputs", "family_of"]

# By the full name of the network's class: no model's code is imported to look it up.
FAMILIES: dict[str, Family] = {
    **wan.FAMILIES,
    **hunyuan.FAMILIES,
    **cogvideo.FAMILIES,
    **genmo.FAMILIES,
    **cosmos.FAMILIES,
    **kandinsky.FAMILIES,
    **lightricks.FAMILIES,
    **ltx2.FAMILIES,
    **minimax.FAMILIES,
}


def family_of(model) -> Family | None:
    """The row of a diffusion model, or None. A subclass does not inherit its parent's row."""
    kind = type(model)
    return FAMILIES.get(f"{kind.__module__}.{kind.__qualname__}")
