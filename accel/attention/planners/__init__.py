"""One file per attention pattern, one row in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..call import AttentionCall
from ..plan import SparsePlan
from ..spending import Spending
from . import pooled, radial, svg1, svg2, svg_ear, tree, window
from .planning import Planning


class Pattern(NamedTuple):
    """plan: chooses the key blocks of a call. token_order: whether the node's token_order changes its blocks. static:
    whether its map depends on the layout alone, so that max_density is what it aims at. error_of_dropped_mass: relative
    L2 of the output for each unit of attention mass that is dropped, at the least, as measured in tests/bench/results;
    0 before it is measured, and precision auto stays at 16 bits. planning: what a call costs beside attention, for the
    gate."""

    plan: Callable[[AttentionCall, Spending], SparsePlan]
    token_order: bool = False
    static: bool = False
    error_of_dropped_mass: float = 0.0
    planning: Planning = Planning(means=2)


PATTERNS = {
    "svg2": Pattern(svg2.plan, error_of_dropped_mass=0.6, planning=Planning(clusters=True)),
    "svg_ear": Pattern(
        svg_ear.plan,
        error_of_dropped_mass=0.2,
        planning=Planning(clusters=True, means=2, probe=True, tail=True),
    ),
    "tree": Pattern(tree.plan, error_of_dropped_mass=0.3, planning=Planning(trees=True, means=3, tail=True)),
    "svg1": Pattern(svg1.plan, static=True, error_of_dropped_mass=0.6),
    "radial": Pattern(radial.plan, static=True, error_of_dropped_mass=0.6),
    "window": Pattern(window.plan, token_order=True, static=True, error_of_dropped_mass=0.6),
    "pooled": Pattern(pooled.plan, token_order=True, error_of_dropped_mass=0.45, planning=Planning(means=3, tail=True)),
}
