"""The guard: samples the error of sparse calls, and gives a layer more where a promise is broken.

Decisions are made on the host between forwards, from numbers that are read once for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .account.forward_statistics import CallNumbers, SampleNumbers
from .budget import FEW_STEPS

ROWS = 16
EVERY = 4  # steps from one sample of a layer to the next; in few-step runs each step
MASS_SLACK = 0.05
# Rows are few: an error that a profile's target allows may be found so many times as large.
ERROR_SLACK = 1.5
# A plan that max_density cut in more than this part of its query blocks promises no mass.
CUT = 0.05
# So often a layer's allowed loss of mass is halved; then it stays dense.
RAISES = 2


@dataclass
class _Samples:
    """Samples of one block in one step, of all branches and forwards together."""

    top_p: float
    error: float = 0.0
    norm: float = 0.0
    mass: float = 0.0
    capped: float = 0.0
    calls: int = 0

    def add(self, sample: SampleNumbers, capped: float) -> None:
        self.error += sample.error
        self.norm += sample.norm
        self.mass += sample.mass
        self.capped += capped
        self.calls += 1

    def broken(self, promise: Promise) -> str | None:
        """What was measured instead of what was promised, in words."""
        if promise.error is not None:
            error = (self.error / self.norm) ** 0.5 if self.norm else 0.0
            return f"error {error:.3f}, {promise.error:.3f} expected" if error > ERROR_SLACK * promise.error else None
        mass = self.mass / self.calls
        if not promise.mass or self.capped > CUT * self.calls or mass >= self.top_p - MASS_SLACK:
            return None
        return f"kept mass {mass:.2f}, {self.top_p:.2f} promised"


class Promise(NamedTuple):
    """What a block is held to: a profile's error, or the mass that top_p names if the pattern promises any."""

    error: float | None
    mass: bool


class Guard:
    """One run's guard. on: whether it samples and acts. steps: of the run. actions: what it saw and did, in sentences.

    It acts from one step to the next, so that the branches of guidance, run together or one after the other, are
    treated alike.
    """

    def __init__(self, on: bool, steps: int) -> None:
        self.on = on
        self.actions: list[str] = []
        self._every = 1 if steps <= FEW_STEPS else EVERY
        self._step: int | None = None
        self._samples: dict[int, tuple[_Samples, Promise]] = {}
        self._raises: dict[int, int] = {}
        self._probation: set[int] = set()
        self._dense: set[int] = set()

    def begin(self, step: int) -> None:
        """A forward of this step begins: what the step before broke is mended from here on."""
        if step != self._step:
            self._settle(self._raise)
        self._step = step

    def end(self) -> None:
        """The run ends."""
        self._settle(lambda block, samples: "the run ended there")

    def samples(self, block: int, step: int) -> bool:
        """Whether the block's calls of this step are sampled: in turn, and always where it was raised last time."""
        return self.on and ((block + step) % self._every == 0 or block in self._probation)

    def is_dense(self, block: int) -> bool:
        """Whether the block lost its right to be sparse."""
        return block in self._dense

    def raised(self, block: int, top_p: float) -> float:
        """What a top_p of the block has become."""
        part = 0.5 ** self._raises.get(block, 0)
        return 1 - (1 - top_p) * part if part < 1 else top_p

    def learn(self, call: CallNumbers, promise: Promise) -> None:
        """Takes in a sparse call that was read."""
        if call.sample is not None and call.top_p is not None and call.finite:
            samples, _ = self._samples.setdefault(call.block, (_Samples(call.top_p), promise))
            samples.add(call.sample, call.capped)

    def repeat(self, step: int, block: int | None, mended: bool) -> None:
        """A forward that was not finite, by the fault of this block if any is known, was repeated densely. mended:
        whether that helped; if it did not, the fault is the model's, and nothing is left to guard."""
        which = "the model" if block is None else f"layer {block}"
        if mended:
            self.actions.append(f"step {step + 1}: {which} gave NaN or Inf; run again, dense")
            if block is not None:
                self._dense.add(block)
        else:
            self.actions.append(f"step {step + 1}: the model gives NaN or Inf, with dense attention too")
            self.on = False

    def _settle(self, act: Callable[[int, _Samples], str]) -> None:
        self._probation.clear()
        if self._step is None:
            return
        for block, (samples, promise) in sorted(self._samples.items()):
            broken = samples.broken(promise)
            if broken and block not in self._dense:
                self.actions.append(f"layer {block}, step {self._step + 1}: {broken}; {act(block, samples)}")
        self._samples.clear()

    def _raise(self, block: int, samples: _Samples) -> str:
        self._raises[block] = self._raises.get(block, 0) + 1
        if self._raises[block] > RAISES:
            self._dense.add(block)
            return "dense from the next step on"
        self._probation.add(block)
        return f"top_p raised to {self.raised(block, samples.top_p):.3f}"
