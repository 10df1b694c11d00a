"""An attention pattern: runs of the model's own order, kept by their means."""

import json
from pathlib import Path

from dit_accel.tests.support.toys.steps import Step, change, new

NAME = "ribbons"
FILE, PLACE = NAME, "<name>"
PLANNER = '''"""ribbons: blocks of consecutive tokens; means say what to keep, and stand in for the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..call import AttentionCall
from ..plan import BlockOrder, SparsePlan
from ..spending import Spending
from .blocks import block_order, block_sizes, ordered_blocks
from .pooled import plan_by_means


def plan(call: AttentionCall, spending: Spending) -> SparsePlan:
    """Blocks of the raster, kept by the mass that their means promise; with a tail."""
    shared = call.static.get(("ribbons", call.layout, call.q.device), lambda: _orders(call))
    queries, keys = (replace(order, index=order.index.expand(call.q.shape[:2])) for order in shared)
    return plan_by_means(call, spending, queries, keys)


def _orders(call: AttentionCall) -> tuple[BlockOrder, ...]:
    grid = call.layout.grid
    index = torch.zeros(1, 1, dtype=torch.int32, device=call.q.device)
    blocks = (ordered_blocks(grid, "raster", size) for size in block_sizes(math.prod(grid)))
    return tuple(block_order(call.layout, [one], index) for one in blocks)
'''
TEST = '''"""ribbons: its blocks are runs."""

import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.planners import ribbons
from dit_accel.tests.support.calls import make_call


def test_blocks_are_ribbons():
    layout = TokenLayout((3, 8, 8))
    q, k, v = (torch.randn(1, 2, layout.total, 64, generator=torch.Generator().manual_seed(0)) for _ in range(3))
    plan = ribbons.plan(make_call(q, k, v, layout), Budget())
    assert torch.equal(plan.keys.tokens[0], torch.arange(layout.total).int())
'''


def _snapshot(before: str | None, tree: Path) -> str:
    nodes = json.loads(before)
    (pattern,) = (one for one in nodes["DitAccelSparseAttention"]["inputs"] if one["name"] == "pattern")
    pattern["options"].append(NAME)
    return json.dumps(nodes, indent=1) + "\n"


def _count(before: str | None, tree: Path) -> str:
    numbers = ["seven", "eight", "nine", "ten", "eleven", "twelve"]
    (count,) = (number for number in numbers if f"one of {number} patterns" in before)
    return before.replace(f"one of {count} patterns", f"one of {numbers[numbers.index(count) + 1]} patterns")


_TABLE = "accel/attention/planners/__init__.py"
_HELP = "web/js/docs/DitAccelSparseAttention.md"
STEPS = {
    "planner": new(f"accel/attention/planners/{NAME}.py", PLANNER),
    "row": change(
        _TABLE,
        (r"^(from \. import .*radial), svg1,", r"\1, ribbons, svg1,"),
        (r"\n\}\n\Z", '\n    "ribbons": Pattern(ribbons.plan, planning=Planning(means=3, tail=True)),\n}\n'),
    ),
    "option": change(
        "nodes/sparse_attention.py",
        (r'("pattern",\s+options=\[[^\]]*?),?(\s*\])', r'\1, "ribbons"\2'),
        (
            r'^(\s+"How the kept key blocks are chosen\.)',
            r'                        "ribbons: runs of the raster. "\n\1',
        ),
    ),
    "snapshot": Step("tests/server/object_info.json", _snapshot),
    "help": change(
        _HELP,
        (r"^- \*\*svg1\*\*", "- **ribbons**: consecutive tokens, kept by their means, with a tail.\n- **svg1**"),
        (r"Only `svg2`", "Only `ribbons`, `svg2`"),
    ),
    "count": Step("README.md", _count),
    "test": new(f"tests/unit/test_{NAME}.py", TEST),
}
# What finds that a step was left out.
FINDS = {
    "row": ("tests/unit/test_help.py", "-k", "snapshot"),
    "option": ("tests/comfy/test_nodes.py",),
    "snapshot": ("tests/unit/test_help.py",),
    "help": ("tests/unit/test_help.py",),
    "count": ("tests/unit/test_help.py",),
}
TESTS = (
    ("tests/unit", "-k", f"{NAME} or test_help or what_dropped_mass or packaging or every_pattern"),
    ("tests/comfy/test_nodes.py", "tests/comfy/test_families.py", "-k", f"test_nodes or ({NAME} and odd)"),
    ("tests/kernels/test_tall_chunks.py", "-k", NAME),
    ("tests/server/test_registration.py", "tests/server/test_same_result.py", "-k", f"registration or {NAME}"),
)
