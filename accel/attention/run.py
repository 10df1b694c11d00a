"""One sampling run: its settings, its state and its statistics."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from ...kernels import registry
from . import reasons
from .account.forward_statistics import CallNumbers, ForwardStatistics
from .account.marks import Mark
from .account.run_summary import RunSummary
from .account.tally import Tally
from .budget import PRESETS, Budget
from .cost.gate import Gate
from .cost.race import Race
from .guard import Guard, Promise
from .memory import StaticPlans, TensorCache
from .planners import PATTERNS
from .profiles.observer import Observer
from .schedule import SigmaWindow, step_of
from .spending import Spending


@dataclass(frozen=True)
class Settings:
    """What the node asks for. sparse: whether there is one; a run may only be recorded."""

    pattern: str = "svg2"
    precision: str = "auto"
    token_order: str = "auto"
    guard: str = "on"
    fallback: str = "dense"
    budget: Budget = field(default_factory=lambda: PRESETS["auto"])
    sparse: bool = True


class Run:
    """Fresh for every sampling run; nothing of it outlives `free` but the summary, which holds numbers alone.

    sigmas: the schedule, decreasing, the last is its end. start: the latent it began with, None where it is not known.
    observed: whether budgets are measured. dense_reason: set when something failed for good; the rest of the run is
    then dense.
    """

    def __init__(
        self,
        settings: Settings,
        budget: Budget,
        window: SigmaWindow,
        model: str,
        gate: Gate | None = None,
        *,
        sigmas: Sequence[float] = (),
        start: Mark | None = None,
        observed: bool = False,
    ) -> None:
        self.settings = settings
        self.budget = budget
        self.window = window
        self.model = model
        self.dense_reason: str | None = None if settings.sparse else reasons.NOT_ASKED
        self.cache = TensorCache()
        self.static = StaticPlans()
        self.gate = Gate() if gate is None else gate
        self.steps = max(0, len(sigmas) - 1)
        self.race = Race(self.steps)
        self.guard = Guard(settings.guard == "on" and settings.sparse, self.steps)
        self.observer = Observer(settings.pattern, budget.max_density, self.steps) if observed else None
        self.tally = Tally()
        self._sigmas = sigmas
        self.start = start
        self._lock = threading.Lock()
        self._forwards = 0
        self._silent = 0  # forwards of which no attention call came by: a cache may skip some
        self._sparse: Counter[str] = Counter()
        self._dense: Counter[str] = Counter()
        self._expected = 0
        self._sums = Counter[str]()
        self._remarks: list[str] = []

    def __deepcopy__(self, memo) -> Run:
        """It travels in model options, which other nodes copy; there is one per run all the same."""
        return self

    def begin(self, sigma: float) -> int:
        """A forward at this noise level begins; the step, from 0, that it belongs to."""
        step = step_of(sigma, self._sigmas)
        with self._lock:
            self.guard.begin(step)
        return step

    def races(self, device: torch.device) -> bool:
        """Whether the run's own times decide what is sparse on `device`: its dense steps are timed, too."""
        return self.settings.sparse and self.settings.fallback == "dense" and bool(registry.triton_problem(device.type))

    def check_profile(self, heads: int, calls: int) -> None:
        """Raises ValueError if the profile is of another model than this one, whose video self-attention has so many
        heads and makes so many calls in a forward."""
        if self.budget.profile is not None:
            self.budget.profile.check(self.model, calls, heads, self.settings.pattern)

    def spending(self, block: int, device: torch.device) -> Spending:
        """What a call of this block may spend."""
        profile = self.budget.profile
        if profile is None:
            return self.budget.spending(self.guard.raised(block, self.budget.top_p))
        row = tuple(self.guard.raised(block, top_p) for top_p in profile.row(block))
        # Made once for a layer and a device: a copy from the host waits.
        top_p = self.static.get(("top_p", row, device), lambda: torch.tensor(row, device=device))
        most = min(profile.max_density, self.budget.max_density)
        return Spending(top_p, min(row) >= 1, profile.floor, most)

    def promised_top_p(self, block: int) -> float:
        """Attention mass that a call of this block promises to keep; with a profile, its heads' mean."""
        profile = self.budget.profile
        return self.budget.top_p if profile is None else sum(profile.row(block)) / profile.heads

    def remark(self, sentence: str) -> None:
        """A note for the user, said once."""
        if sentence not in self._remarks:
            self._remarks.append(sentence)

    def stop_observing(self, reason: str) -> None:
        """Nothing more is measured, and what was is given up."""
        if self.observer is not None:
            self.observer.give_up(reason)

    def add(self, forward: ForwardStatistics) -> None:
        """Takes in a finished forward; reads its device numbers. What was measured needs memory, so it comes last."""
        if forward.silent:
            with self._lock:
                self._silent += 1
            return
        forward.read()
        self.cache.settle()
        with self._lock:
            self._forwards += 1
            self._sparse += forward.sparse
            self._dense += forward.dense
            self._expected += forward.expected
            self.tally.add(forward)
            self.gate.learn(forward.measured)
            self.race.learn(forward)
            for call in forward.calls:
                if call.top_p is not None:
                    self._add_sparse(call)
            if self.observer is not None:
                self.observer.learn(forward)

    def _add_sparse(self, call: CallNumbers) -> None:
        plan, kernel = call.laps[:2]
        self._sums.update({"density": call.density, "capped": call.capped, "plan": plan, "kernel": kernel})
        profile = self.budget.profile
        error = None if profile is None else profile.promised(call.block)
        self.guard.learn(call, Promise(error, mass=not PATTERNS[self.settings.pattern].static))

    def discard(self, forward: ForwardStatistics, mended: bool) -> None:
        """Takes in a forward, already read, whose result was not finite and is not used. mended: whether dense
        attention gave a finite one; the layer at fault then stays dense."""
        with self._lock:
            # Layers behind the first only hand on what they got.
            fault = next((call.block for call in forward.calls if not call.finite), None)
            self.guard.repeat(forward.step, fault, mended)
            self.tally.discard(forward)
            # What was clustered may be at fault too.
            self.cache.clear()

    def progress(self) -> RunSummary:
        """The run so far, without its cells."""
        calls = sum(self._sparse.values()) or 1
        sums = self._sums
        chosen = self.budget.preset
        if self.settings.budget.preset != chosen:
            chosen = f"{self.settings.budget.preset} ({chosen})"
        return RunSummary(
            pattern=self.settings.pattern,
            model=self.model,
            budget=chosen,
            forwards=self._forwards,
            sparse=dict(self._sparse),
            dense=dict(self._dense),
            expected=self._expected,
            density=sums["density"] / calls,
            capped=sums["capped"] / calls,
            profiled=self.budget.profile is not None,
            plan_share=sums["plan"] / ((sums["plan"] + sums["kernel"]) or 1.0),
        )

    def free(self) -> None:
        """Ends it: what it remembers between forwards is forgotten."""
        self.cache.clear()
        self.static.clear()

    def close(self, end: Mark | None = None, *, finished: bool = False) -> RunSummary:
        """Sums the run up; what was measured needs memory for that. end: the latent it made, None where it is not
        known. finished: whether it came to its end."""
        self.guard.end()
        recording = None
        if self.observer is not None:
            dense_steps = sum(sigma not in self.window for sigma in self._sigmas[:-1])
            recording = self.observer.recording(self.model, self.steps, dense_steps)
        return replace(
            self.progress(),
            notes=self._notes(finished),
            timeline=self.tally.timeline(tuple(self.guard.actions)),
            recording=recording,
            start=self.start,
            end=end,
        )

    def _notes(self, finished: bool) -> tuple[str, ...]:
        notes = list(self._remarks)
        token_order, pattern = self.settings.token_order, self.settings.pattern
        if token_order != "auto" and not PATTERNS[pattern].token_order:
            notes.append(f"token_order {token_order} has no effect on {pattern}")
        reached = sum(self._sparse.values()) + sum(reasons.of_video(self._dense).values())
        if finished and self.steps and not self._forwards and not self._silent:
            notes.append(
                "no forward pass reached this node: the sampler calls the model with transformer_options of its own, "
                "or does not call it"
            )
        if self._silent and not self._sparse:
            notes.append(
                f"no attention call came by in {self._silent} forward passes: a cache skips them, or another node "
                "computes the attention itself"
            )
        if self._expected > reached:
            notes.append(
                f"only {reached} of {self._expected} video self-attention calls came by: another node skips their "
                "blocks, adds tokens or computes them itself"
            )
        if self.race.summary:
            notes.append(self.race.summary)
        if self.gate.predicted:
            notes.append(
                f"'{reasons.DENSE_FASTER}' rests on published rates of the chip: `dit-accel bench gate` measures this "
                "card"
            )
        if self.observer is not None and self.observer.stopped is not None:
            notes.append(f"measuring stopped: {self.observer.stopped}")
        if self.cache.refused:
            notes.append(f"{self.cache.refused} plans did not fit the cluster cache and are made afresh each time")
        return tuple(notes)
