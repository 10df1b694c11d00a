"""The gate: keeps a call dense where the cost model says that the sparse path would not win.

It decides from numbers that the host has anyway: sizes, the budget, and the densities that earlier forwards
of the run were read for. Costs are those of the chip from published peak rates, until `dit-accel bench gate` has
measured the card.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import torch

from ....kernels import registry
from ..budget import Budget
from ..planners import PATTERNS
from ..planners.clusters import FIRST_ITERATIONS, WARM_ITERATIONS
from ..precision import choose_formats
from .costs import Size, Terms, dense_work, predicted_costs, sparse_work
from .fits import Fit, software

log = logging.getLogger("dit_accel")

# Predicted costs must be clear about it: the sparse path has to take this many times as long as dense. With less, calls
# would stay dense that win by 1.2 in published break-even lengths, which take all clusters to fill their tiles.
MARGIN, MEASURED = 1.35, 1.0
# Kept share expected of a call whose density is not known, when top_p is below 1: about what SVG2 publishes for 0.9.
# Too low costs one forward, after which the density is known; too high, and it never would be.
EXPECTED_DENSITY = 0.3
# A density is believed for so many forwards; a layer that it keeps dense is then tried again.
BELIEVED = 8


class Here(NamedTuple):
    """A GPU: its name and its chip (registry.architecture)."""

    name: str
    architecture: str


class Known(NamedTuple):
    """What is known of a GPU: its costs, and how many times as long as dense the sparse path must take to lose."""

    here: Here
    costs: Terms
    margin: float

    @property
    def measured(self) -> bool:
        return self.margin == MEASURED


def card_at(device: torch.device) -> Here | None:
    """The GPU at `device`; None where times mean nothing: off the GPU and in Triton's interpreter."""
    if device.type != "cuda" or registry.interpreted():
        return None
    return Here(torch.cuda.get_device_name(device), registry.architecture(device))


def expected_density(budget: Budget) -> float:
    """What a call of unknown density is taken to keep, 0..1."""
    kept = EXPECTED_DENSITY if budget.top_p < 1 else 1.0
    return min(max(kept, budget.floor), budget.max_density)


class Gate:
    """One run's gate. fits: what was measured, of this machine's cards or others. predicted: whether a call was kept
    dense by costs that nobody measured."""

    def __init__(self, fits: Sequence[Fit] = ()) -> None:
        self.predicted = False
        self._fits = fits
        self._costs: dict[torch.device, Known | None] = {}
        self._densities: dict[Hashable, tuple[int, float]] = {}
        self._forwards = 0

    def learn(self, densities: Mapping[Hashable, float]) -> None:
        """Takes in a finished forward's density of every sparse call, by the call's key."""
        self._forwards += 1
        self._densities.update({key: (self._forwards, density) for key, density in densities.items()})

    def dense_is_faster(
        self, key: Hashable, size: Size, device: torch.device, pattern: str, budget: Budget, precision: str, warm: bool
    ) -> bool:
        """Whether this call should stay dense. key: the call's identity in the run; warm: whether the run remembers
        clusters from step to step; such a run is judged by its later calls, not by the first. Never waits."""
        known = self._at(device)
        if known is None:
            return False
        faster = self.faster_at_8_bit(device)
        bits = 16 if choose_formats(precision, pattern, budget, known.here.architecture, faster) is None else 8
        rounds = WARM_ITERATIONS if warm else FIRST_ITERATIONS
        work = sparse_work(size, PATTERNS[pattern].planning, self._density(key, budget), bits, rounds)
        dense = work.milliseconds(known.costs) > known.margin * dense_work(size).milliseconds(known.costs)
        self.predicted |= dense and not known.measured
        return dense

    def faster_at_8_bit(self, device: torch.device) -> bool:
        """Whether the card at `device` was measured to run the sparse kernel faster at 8 bits than at 16."""
        known = self._at(device)
        return known is not None and known.measured and known.costs.sparse_8bit < known.costs.sparse_16bit

    def _density(self, key: Hashable, budget: Budget) -> float:
        seen, density = self._densities.get(key, (-BELIEVED, 0.0))
        return density if self._forwards - seen < BELIEVED else expected_density(budget)

    def _at(self, device: torch.device) -> Known | None:
        if device not in self._costs:
            self._costs[device] = self._find(device)
        return self._costs[device]

    def _find(self, device: torch.device) -> Known | None:
        here = card_at(device)
        if here is None:
            return None
        now = software()
        for fit in self._fits:
            if fit.card == here.name and fit.software == now:
                return Known(here, fit.costs, MEASURED)
            if fit.card == here.name:
                log.warning(
                    "DiT Accel: %s is ignored: expected a measurement with %s, found one with %s; "
                    "`dit-accel bench gate` measures again",
                    fit.path,
                    " and ".join(f"{name} {version}" for name, version in now.items()),
                    " and ".join(f"{name} {version}" for name, version in fit.software.items()),
                )
        return Known(here, predicted_costs(here.architecture), MARGIN)
