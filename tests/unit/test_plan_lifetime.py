"""What a sparse call leaves behind in its forward: scalars."""

import weakref

import pytest
import torch

from dit_accel.accel.attention import plan as plans
from dit_accel.accel.attention.account.forward_statistics import ForwardStatistics
from dit_accel.accel.attention.account.stopwatch import Stopwatch
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.plan import BlockOrder, SparsePlan
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.comfy.sparse import override
from dit_accel.kernels import registry
from dit_accel.tests.support.forwards import make_forward, make_run, outside_comfyui
from dit_accel.tests.support.memory import LiveMemory

LAYOUT = TokenLayout((4, 8, 8), prefix=5)
HEADS, DIM = 2, 32


@pytest.fixture(autouse=True)
def _reference(monkeypatch):
    outside_comfyui(monkeypatch)
    monkeypatch.setattr(registry, "choose", lambda *_, **__: (None, "no GPU"))


def sparse_layers(pattern: str, layers: int) -> tuple[ForwardStatistics, LiveMemory]:
    """So many sparse calls of one forward that goes on, guard included, and their memory without the outputs."""
    # Branches are unknown, so that the run remembers no clusters.
    forward = make_forward(make_run("reference", pattern), LAYOUT, branches=())
    forward.statistics.step = 1
    q, k, v = (torch.randn(2, LAYOUT.total, HEADS * DIM) for _ in range(3))
    with LiveMemory(q, k, v) as memory:
        for _ in range(layers):
            options = {override.FORWARD_KEY: forward}
            override.attention_override(None, q, k, v, heads=HEADS, transformer_options=options)
        forward.run.static.clear()  # shared by all layers of the run
    assert forward.statistics.sparse == {"reference": layers}
    return forward.statistics, memory


@pytest.mark.parametrize("pattern", PATTERNS)
def test_planner_memory_does_not_grow_with_the_number_of_layers(pattern):
    (_first, one), (_second, many) = sparse_layers(pattern, 1), sparse_layers(pattern, 4)
    assert many.live - one.live < 4 * 256, "scalars alone stay"
    assert many.peak - one.peak < 4 * 256


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_plan_is_gone_when_its_call_is_over(pattern, monkeypatch):
    made, row = [], PATTERNS[pattern]

    def plan(call, spending):
        plan = row.plan(call, spending)
        made.append(weakref.ref(plan))
        return plan

    monkeypatch.setitem(PATTERNS, pattern, row._replace(plan=plan))
    _statistics, _ = sparse_layers(pattern, 2)
    assert [ref() for ref in made] == [None, None]


def wide_plan(heads: int, blocks: int) -> SparsePlan:
    tokens = torch.arange(blocks, dtype=torch.int32)[None]
    offsets = torch.arange(blocks + 1, dtype=torch.int32)[None]
    order = BlockOrder(tokens, offsets, torch.zeros(2, heads, dtype=torch.int32))
    keep = torch.rand(2, heads, blocks, blocks, generator=torch.Generator().manual_seed(0)) < 0.3
    return SparsePlan(order, order, keep)


def test_density_never_holds_the_whole_map_in_floats(monkeypatch):
    plan = wide_plan(heads=8, blocks=256)
    monkeypatch.setattr(plans, "PART", plan.keep.numel() // 8)
    with LiveMemory() as memory:
        density = plan.density_by_head()
    assert memory.peak < 2 * plan.keep.numel(), "half of the map in floats, which einsum holds twice for a part"
    torch.testing.assert_close(density, plan.keep.float().mean((2, 3)))
    torch.testing.assert_close(plan.density(), plan.keep.float().mean())


def test_what_needs_no_plan_any_more_drops_it():
    statistics, plan = ForwardStatistics(), wide_plan(1, 8)
    watch = Stopwatch(torch.device("cpu"))
    watch.mark()
    watch.mark()
    statistics.record(plan, watch, "reference")
    statistics.record_trial(plan, watch)
    density, plan = plan.density().item(), weakref.ref(plan)
    assert plan() is None
    statistics.read()
    assert statistics.calls[0].density == statistics.trials[0][0] == density
