"""A pattern on a case: its times, density and memory, and the error of the very output that was timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...kernels import registry
from ...kernels.attention_configs import FORMATS
from ...kernels.quantise import Formats
from ..attention import executor
from ..attention.budget import Budget
from ..attention.call import AttentionCall
from ..attention.memory import LayerMemory, StaticPlans, TensorCache
from ..attention.plan import SparsePlan
from ..attention.planners import PATTERNS
from .case import Case
from .timing import once, peak_bytes, timed

# What a row may have more than the density that it was asked for.
TOLERANCE = 1.1
SPARSE_OPERATORS = {"triton": "dit_accel::attend_chunks", "torch": "dit_accel::attend_blocks"}
DENSE_OPERATOR = "scaled_dot_product"


class Planner:
    """A pattern with a budget on a case, and what it remembers between calls."""

    def __init__(self, case: Case, pattern: str, budget: Budget) -> None:
        self._plan = PATTERNS[pattern].plan
        self._spending = budget.spending()
        self._cache, self._static = TensorCache(), StaticPlans()
        memory = LayerMemory(self._cache, ("bench",), pattern)
        self.call = AttentionCall(case.q, case.k, case.v, case.layout, case.scale, case.backend, memory, self._static)

    def first(self) -> SparsePlan:
        """A run's first call: nothing is remembered."""
        self._cache.clear()
        self._static.clear()
        return self.again()

    def again(self) -> SparsePlan:
        """A later call, which starts where the last one ended."""
        return self._plan(self.call, self._spending)


@dataclass(frozen=True)
class Planned:
    """The plan that is executed, and what planning takes, in milliseconds (two medians each of a run's first call
    and of the later ones). setup_ms: the very first call of everything, compiling included.

    target: what the row was to keep, in words; target_density: the same as a density, None where top_p decides.
    """

    case: Case
    pattern: str
    budget: Budget
    target: str
    target_density: float | None
    planner: Planner
    plan: SparsePlan
    setup_ms: float
    first_plan_ms: tuple[float, float]
    plan_ms: tuple[float, float]


def plan_timed(case: Case, pattern: str, budget: Budget, target: str, target_density: float | None) -> Planned:
    """Plans `pattern` with `budget`, as a run does at first and later."""
    planner = Planner(case, pattern, budget)
    _, setup_ms = once(planner.first, case.device)
    _, *first = timed(planner.first, case.repeats, case.device)
    plan, *later = timed(planner.again, case.repeats, case.device)
    return Planned(case, pattern, budget, target, target_density, planner, plan, setup_ms, tuple(first), tuple(later))


def measure(planned: Planned, formats: Formats | None) -> dict[str, Any]:
    """One row: the plan executed in `formats` (None: in the case's dtype)."""
    case, plan, budget = planned.case, planned.plan, planned.budget
    # 8 bits have no fast form in plain PyTorch.
    backend = "reference" if formats and case.backend == "torch" else case.backend

    def sparse(plan=plan):
        return executor.execute(case.q, case.k, case.v, plan, formats=formats, scale=case.scale, backend=backend)

    _, setup_ms = once(sparse, case.device)
    share = sparse_share(sparse, backend)
    out, ms, again_ms = timed(sparse, case.repeats, case.device)
    density = plan.density().item()
    row = {
        **case.about(),
        "pattern": planned.pattern,
        "formats": format_name(case, formats),
        "asked": planned.target,
        "asked_density": planned.target_density,
        "top_p": budget.top_p,
        "floor": budget.floor,
        "max_density": budget.max_density,
        "backend": backend,
        "query_blocks": plan.queries.blocks,
        "key_blocks": plan.keys.blocks,
        "density": density,
        "sparse_share": share,
        "error": case.error(out),
        "setup_ms": planned.setup_ms + setup_ms,
        "first_plan_ms": planned.first_plan_ms[0],
        "first_plan_again_ms": planned.first_plan_ms[1],
        "plan_ms": planned.plan_ms[0],
        "plan_again_ms": planned.plan_ms[1],
        "kernel_ms": ms,
        "kernel_again_ms": again_ms,
        "useful_flops": case.useful_flops(density, ms),
        "peak_bytes": peak_bytes(lambda: sparse(planned.planner.again()), case.device),
        "dense_ms": case.dense.ms,
        "dense_again_ms": case.dense.again_ms,
        "dense_error": case.error(case.dense.out),
    }
    return row | verdict(row)


def verdict(row: dict[str, Any]) -> dict[str, Any]:
    """Whether the numbers of a row may be compared with others, and if not, why."""
    problems = []
    if row["asked_density"] is not None and row["density"] > TOLERANCE * row["asked_density"]:
        problems.append(f"density {row['density']:.3f} is more than {TOLERANCE} times {row['asked_density']}")
    if row["sparse_share"] < 1:
        problems.append(f"only {row['sparse_share']:.0%} of the call ran sparse")
    if not row["error"] < float("inf"):
        problems.append("the output is not finite")
    return {"valid": not problems, "remark": f"invalid: {'; '.join(problems)}" if problems else ""}


def sparse_share(sparse, backend: str) -> float:
    """1.0 where a run of `sparse` reaches the sparse kernel (on the reference: no dense attention), else 0.0."""
    with _Operators() as seen:
        sparse()
    if backend in SPARSE_OPERATORS:
        return float(SPARSE_OPERATORS[backend] in seen.names)
    return float(not any(DENSE_OPERATOR in name for name in seen.names))


class _Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name().partition(".")[0])
        return function(*args, **(kwargs or {}))


def format_name(case: Case, formats: Formats | None) -> str:
    """Formats of queries and keys, and of values, in words."""
    if formats is None:
        return case.dtype
    keys, values = (case.dtype if x is None else str(x).removeprefix("torch.") for x in formats)
    return f"{keys} x {values}"


def formats_of(device: torch.device) -> tuple[Formats, ...]:
    """What the device multiplies at 8 bits, the most 8-bit first; without a GPU what the interpreter takes."""
    return registry.nearest(FORMATS, registry.architecture(device) if device.type == "cuda" else "interpreter")
