"""The nodes' schemas against the tables behind them."""

from dit_accel.accel.attention.budget import CUSTOM, PRESETS
from dit_accel.accel.attention.planners import PATTERNS


def options(node, name: str) -> list[str]:
    return next(entry for entry in node.define_schema().inputs if entry.id == name).options


def test_patterns_are_the_planners(comfy):
    from dit_accel.nodes.sparse_attention import DitAccelSparseAttention

    assert options(DitAccelSparseAttention, "pattern") == list(PATTERNS)


def test_presets_are_the_table(comfy):
    from dit_accel.nodes.attention_budget import DitAccelBudget

    assert set(options(DitAccelBudget, "preset")) == {*PRESETS, CUSTOM}
