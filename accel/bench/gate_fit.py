"""Measures what the gate's cost model predicts, and fits its costs to the times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ...kernels import registry
from ...kernels.attention_configs import FORMATS
from ..attention import executor
from ..attention.budget import Budget
from ..attention.call import AttentionCall
from ..attention.cost.costs import Size, Terms, attend_work, dense_work, plan_work
from ..attention.layout import TokenLayout
from ..attention.memory import LayerMemory, StaticPlans, TensorCache
from ..attention.planners import PATTERNS
from ..attention.planners.clusters import FIRST_ITERATIONS, WARM_ITERATIONS
from ..attention.planners.planning import Planning
from ..attention.precision import REFERENCE_CHIP
from .timing import timed

Grid = tuple[int, int, int]

# (grid, heads): short and long, narrow and wide, within 2 GB.
SIZES: tuple[tuple[Grid, int], ...] = (((2, 48, 64), 8), ((4, 48, 64), 8), ((4, 48, 64), 24), ((8, 48, 64), 8))
DENSITIES = (0.15, 0.4)
DIM = 128


class Timing(NamedTuple):
    """The name of what ran, at which size, density and bits; its work, and the milliseconds it took."""

    name: str
    size: Size
    density: float
    bits: int
    work: Terms
    milliseconds: float

    def row(self, costs: Terms) -> dict[str, Any]:
        """Measured beside what `costs` predict."""
        return {
            "what": self.name,
            "tokens": self.size.tokens,
            "heads": self.size.heads,
            "density": self.density,
            "bits": self.bits,
            "measured_ms": self.milliseconds,
            "fitted_ms": self.work.milliseconds(costs),
        }


def measure(
    device: str, dtype: torch.dtype, backend: str, repeats: int, sizes: Sequence[tuple[Grid, int]] = SIZES
) -> list[Timing]:
    """Times of dense attention as PyTorch runs it, of planning with svg2, and of sparse attention over boxes (`window`)
    and over clusters (`svg2`), in 16 and 8 bits. Random tokens: what they hold moves none of these but the density,
    which max_density sets."""
    return [timing for grid, heads in sizes for timing in _at(grid, heads, device, dtype, backend, repeats)]


def _at(grid: Grid, heads: int, device: str, dtype: torch.dtype, backend: str, repeats: int) -> list[Timing]:
    layout = TokenLayout(grid)
    size = Size(heads, layout.total, layout.video, DIM)
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, heads, layout.total, DIM)
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    chip = registry.architecture(q.device) if backend == "triton" else REFERENCE_CHIP
    formats = {16: None, 8: registry.nearest(FORMATS, chip)[0]}
    timings = []

    def add(name: str, density: float, bits: int, work: Terms, run: Callable[[], Any]) -> None:
        timings.append(Timing(name, size, density, bits, work, timed(run, repeats, q.device).ms))

    def add_sparse(pattern: str, plan) -> None:
        density = plan.density().item()
        for bits, choice in formats.items():
            work = attend_work(size, PATTERNS[pattern].planning, density, bits)
            add(pattern, density, bits, work, lambda choice=choice: attend(plan, choice))

    def attend(plan, choice):
        return executor.execute(q, k, v, plan, formats=choice, scale=DIM**-0.5, backend=backend)

    add("dense", 1.0, 16, dense_work(size), lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    for density in DENSITIES:
        call = AttentionCall(
            q, k, v, layout, DIM**-0.5, backend, LayerMemory(TensorCache(), (), "bench"), StaticPlans()
        )
        add_sparse("window", PATTERNS["window"].plan(call, Budget(top_p=1.0, max_density=density).spending()))

    spending = Budget(max_density=DENSITIES[0]).spending()
    planning: Planning = PATTERNS["svg2"].planning
    for branches, rounds in (((), FIRST_ITERATIONS), (("bench",), WARM_ITERATIONS)):
        memory = LayerMemory(TensorCache(), branches, "bench")
        call = AttentionCall(q, k, v, layout, DIM**-0.5, backend, memory, StaticPlans())
        work = plan_work(size, planning, rounds)
        add(f"svg2 plan, {rounds} rounds", 0.0, 16, work, lambda call=call: PATTERNS["svg2"].plan(call, spending))
    add_sparse("svg2", PATTERNS["svg2"].plan(call, spending))
    return timings


def fit(timings: Sequence[Timing]) -> Terms:
    """The costs, none below 0, at which the squares of the relative errors of all times sum to the least.

    Terms that would be negative are taken to cost nothing, the most negative first. Raises ValueError when the times
    say nothing of some term.
    """
    measured = torch.tensor([timing.milliseconds for timing in timings], dtype=torch.float64)
    amounts = torch.tensor([timing.work for timing in timings], dtype=torch.float64) / measured[:, None]
    scale = amounts.amax(0)
    if not scale.all():
        missing = [name for name, known in zip(Terms._fields, scale.tolist(), strict=True) if not known]
        raise ValueError(f"timings: expected every term among them, found nothing of {', '.join(missing)}")
    columns = list(range(len(Terms._fields)))
    while True:
        solved = torch.linalg.lstsq((amounts / scale)[:, columns], torch.ones_like(measured), driver="gelsd").solution
        if (solved >= 0).all():
            break
        del columns[int(solved.argmin())]
    costs = [0.0] * len(Terms._fields)
    for column, value in zip(columns, solved.tolist(), strict=True):
        costs[column] = value / scale[column].item()
    return Terms(*costs)
