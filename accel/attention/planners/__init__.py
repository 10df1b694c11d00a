"""One file per attention pattern, one row in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..budget import Budget
from ..call import AttentionCall
from ..plan import SparsePlan
from . import pooled, radial, svg1, svg2, svg_ear, window


class Pattern(NamedTuple):
    """plan: chooses the key blocks of a call. token_order: whether the node's token_order changes its blocks. static:
    whether its map depends on the layout alone, so that max_density is what it aims at."""

    plan: Callable[[AttentionCall, Budget], SparsePlan]
    token_order: bool = False
    static: bool = False


PATTERNS = {
    "svg2": Pattern(svg2.plan),
    "svg_ear": Pattern(svg_ear.plan),
    "svg1": Pattern(svg1.plan, static=True),
    "radial": Pattern(radial.plan, static=True),
    "window": Pattern(window.plan, token_order=True, static=True),
    "pooled": Pattern(pooled.plan, token_order=True),
}
