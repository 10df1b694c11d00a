"""One sampling run: its settings, its state and its statistics."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from .budget import PRESETS, Budget
from .gate import Gate
from .planners import PATTERNS
from .reasons import DENSE_FASTER, NOT_SELF_ATTENTION
from .schedule import SigmaWindow
from .state import StaticPlans, TensorCache
from .statistics import ForwardStatistics, RunSummary


@dataclass(frozen=True)
class Settings:
    """What the node asks for. guard is accepted and does not act yet."""

    pattern: str = "svg2"
    precision: str = "auto"
    token_order: str = "auto"
    guard: str = "on"
    fallback: str = "dense"
    budget: Budget = field(default_factory=lambda: PRESETS["auto"])


class Run:
    """Fresh for every sampling run; nothing of it outlives `close` but the summary, which holds no tensor.

    dense_reason: set when something failed for good; the rest of the run is then dense.
    """

    def __init__(
        self, settings: Settings, budget: Budget, window: SigmaWindow, model: str, gate: Gate | None = None
    ) -> None:
        self.settings = settings
        self.budget = budget
        self.window = window
        self.dense_reason: str | None = None
        self.cache = TensorCache()
        self.static = StaticPlans()
        self.gate = Gate() if gate is None else gate
        self._model = model
        self._lock = threading.Lock()
        self._forwards = 0
        self._silent = 0  # evaluations of which no attention call came by: a cache may skip some
        self._sparse: Counter[str] = Counter()
        self._dense: Counter[str] = Counter()
        self._expected = 0
        self._sums = [0.0, 0.0, 0.0, 0.0]

    def __deepcopy__(self, memo) -> Run:
        """It travels in model options, which other nodes copy; there is one per run all the same."""
        return self

    def add(self, forward: ForwardStatistics) -> None:
        """Takes in a finished model evaluation; reads its device numbers."""
        if not forward.sparse and not forward.dense:
            with self._lock:
                self._silent += 1
            return
        sums = forward.read()
        self.cache.settle()
        with self._lock:
            self._forwards += 1
            self._sparse += forward.sparse
            self._dense += forward.dense
            self._expected += forward.expected
            self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)]
            self.gate.learn(forward.measured)

    def close(self) -> RunSummary:
        """Frees the state and sums the run up."""
        self.cache.clear()
        self.static.clear()
        calls = sum(self._sparse.values()) or 1
        density, capped, plan_seconds, execute_seconds = self._sums
        chosen = self.budget.preset
        if self.settings.budget.preset != chosen:
            chosen = f"{self.settings.budget.preset} ({chosen})"
        return RunSummary(
            pattern=self.settings.pattern,
            model=self._model,
            budget=chosen,
            forwards=self._forwards,
            sparse=dict(self._sparse),
            dense=dict(self._dense),
            expected=self._expected,
            density=density / calls,
            capped=capped / calls,
            plan_share=plan_seconds / ((plan_seconds + execute_seconds) or 1.0),
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        notes = []
        asked, pattern = self.settings.token_order, self.settings.pattern
        if asked != "auto" and not PATTERNS[pattern].token_order:
            notes.append(f"token_order {asked} has no effect on {pattern}")
        reached = sum(self._sparse.values()) + sum(
            count for reason, count in self._dense.items() if reason not in NOT_SELF_ATTENTION
        )
        if self._silent and not self._sparse:
            notes.append(
                f"no attention call came by in {self._silent} model evaluations: a cache skips them, another node "
                "computes the attention itself, or torch.compile runs what it compiled without this node (restart "
                "ComfyUI)"
            )
        if self._expected > reached:
            notes.append(
                f"only {reached} of {self._expected} video self-attention calls came by: another node skips their "
                "blocks, adds tokens or computes them itself"
            )
        if self.gate.predicted:
            notes.append(
                f"'{DENSE_FASTER}' rests on published rates of the chip: `dit-accel bench gate` measures this card"
            )
        if self.cache.refused:
            notes.append(f"{self.cache.refused} plans did not fit the cluster cache and are made afresh each time")
        return tuple(notes)
