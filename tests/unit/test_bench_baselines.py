"""Baselines: each is measured on its own output, or says exactly why it cannot be."""

import inspect
import sys
import types
import warnings

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.bench import pattern_row
from dit_accel.accel.bench.case import Case
from dit_accel.accel.bench.inputs import drawn_inputs
from dit_accel.tests.bench import baselines, flex, quality
from dit_accel.tests.support import peers
from dit_accel.tests.support.closeness import assert_close


@pytest.fixture(scope="module")
def case():
    """Powers of two: boxes of one size. The scale is one that nobody takes for granted."""
    case = Case(drawn_inputs((4, 8, 16), heads=2, head_dim=128), device="cpu", backend="reference", repeats=1)
    case.scale *= 3
    return case


def planned(case, pattern="window", density=0.3):
    budget = Budget(top_p=1.0, floor=0.0, max_density=density)
    return pattern_row.plan_timed(case, pattern, budget, f"density {density}", density)


def measure(case, name):
    return baselines.measure_baseline(case, name, lambda: baselines.DENSE[name](case))


def stand_in(monkeypatch, module, **functions):
    """`functions` in the place of an installed package, on tensors that are said to be on a GPU."""
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**functions))
    monkeypatch.setattr(baselines, "_need_gpu", lambda case: None)


def test_a_forced_backend_is_measured(case):
    row = measure(case, "sdpa math")
    assert row["valid"] and row["error"] < 1e-5 and row["density"] == 1 and row["kernel_ms"] > 0
    assert row["formats"] == "float32" and row["version"] == f"torch {torch.__version__}"


def test_a_backend_that_cannot_run_says_why(case):
    row = measure(case, "sdpa cudnn")
    assert not row["valid"] and "kernel_ms" not in row
    assert row["remark"].startswith("skipped: RuntimeError: No viable backend")


def test_torchs_warnings_are_part_of_the_reason(case):
    def refuse():
        warnings.warn("Head dim must be small (Triggered internally at sdp.cpp:1.)", stacklevel=1)
        raise RuntimeError("No available kernel.\nmore")

    ready = baselines.Ready(refuse, lambda out: out, "float32", "1")
    row = baselines.measure_baseline(case, "x", lambda: ready)
    assert row["remark"] == "skipped: RuntimeError: No available kernel. Head dim must be small"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("flash-attn 3", "flash_attn_interface"),
        ("flash-attn 4", "flash_attn.cute"),
        ("sageattention 1", "sageattention"),
        ("comfy-kitchen int8", "comfy_kitchen"),
    ],
)
def test_what_is_not_installed_is_named(case, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    row = measure(case, name)
    assert row["remark"].startswith("skipped: ") and not row["valid"]
    assert "cannot be imported" in row["remark"] and module in row["remark"]


def test_sol_attn_that_is_not_installed_is_named(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", None)
    row = baselines.measure_baseline(case, "sol_attn", lambda: baselines.sol_attn(case, 0.5))
    assert row["remark"] == "skipped: comfy-kitchen is not installed"


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("flash-attn 3", "flash_attn_interface", peers.fa3_flash_attn_func),
        ("flash-attn 4", "flash_attn.cute", peers.fa4_flash_attn_func),
    ],
)
def test_flash_attention_gets_its_layout_and_gives_it_back(case, monkeypatch, name, module, function):
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(flash_attn_func=function))
    assert measure(case, name)["remark"] == "skipped: needs a GPU, the tensors are on the cpu"
    stand_in(monkeypatch, module, flash_attn_func=function)
    row = measure(case, name)
    assert row["error"] < 1e-5 and row["valid"]


def test_comfy_kitchen_says_what_it_lacks_and_is_measured(case, monkeypatch):
    stand_in(monkeypatch, "comfy_kitchen")
    assert "has no int8_attention" in measure(case, "comfy-kitchen int8")["remark"]
    kitchen = {"int8_attention": peers.int8_attention, "int8_attention_is_available": lambda device=None: False}
    stand_in(monkeypatch, "comfy_kitchen", **kitchen)
    assert "has no kernel for this device" in measure(case, "comfy-kitchen int8")["remark"]
    kitchen["int8_attention_is_available"] = peers.available
    stand_in(monkeypatch, "comfy_kitchen", **kitchen)
    row = measure(case, "comfy-kitchen int8")
    assert row["error"] < 1e-5 and row["formats"] == "int8 x int8"


def test_sageattention_is_measured_and_leaves_the_keys_alone(case, monkeypatch):
    stand_in(monkeypatch, "sageattention", sageattn=peers.sageattn)
    monkeypatch.setattr(baselines, "version_of", lambda name: f"{name} 1.0.6")
    keys = case.k.clone()
    row = measure(case, "sageattention 1")
    assert row["error"] < 1e-5 and row["valid"] and row["formats"] == "int8 x float16"
    assert torch.equal(case.k, keys)


def test_another_sageattention_is_not_taken_for_the_first(case, monkeypatch):
    stand_in(monkeypatch, "sageattention", sageattn=peers.sageattn)
    monkeypatch.setattr(baselines, "version_of", lambda name: f"{name} 2.2.0")
    assert measure(case, "sageattention 1")["remark"] == (
        "skipped: expected sageattention 1, found sageattention 2.2.0"
    )


def test_sol_attn_is_asked_for_the_density(case, monkeypatch):
    asked = []

    def sol_attn(*arguments, **options):
        asked.append(inspect.signature(peers.sol_attn).bind(*arguments, **options).arguments["tau"])
        return peers.sol_attn(*arguments, **options)

    stand_in(monkeypatch, "comfy_kitchen", sol_attn=sol_attn, sol_attn_is_available=peers.available)
    monkeypatch.setattr(quality, "sol_attn_problem", lambda head_dim: None)

    def row(density):
        return baselines.measure_baseline(
            case, "sol_attn", lambda: baselines.sol_attn(case, density), f"density {density}", density
        )

    found = row(0.6)
    assert 0.5 < found["density"] <= 0.6 and found["error"] < 1e-5 and found["valid"]
    assert found["formats"] == "int8 x int8"
    assert quality.sol_density(case.q, case.k, asked[0]) == found["density"]
    assert "blocks of 64 tokens cannot" in row(0.01)["remark"]
    assert "none was asked for" in row(None)["remark"]


def test_flex_attention_gets_the_same_mask(case):
    found = planned(case)
    (q, k, v), mask, options, finish = flex.prepare(case.q, case.k, case.v, found.plan)
    query_sizes, key_sizes = found.plan.queries.sizes(), found.plan.keys.sizes()
    kept = found.plan.keep[:, :, query_sizes[0, 0] > 0][:, :, :, key_sizes[0, 0] > 0]
    assert torch.equal(mask.to_dense().bool(), kept)
    assert options == {"BLOCK_M": 32, "BLOCK_N": 16} and mask.BLOCK_SIZE == (32, 16)
    # Uncompiled, it looks at the mask function alone.
    out = finish(flex_attention(q, k, v, block_mask=mask, scale=case.scale))
    expected = executor.execute(case.q, case.k, case.v, found.plan, scale=case.scale, backend="reference")
    assert_close(out, expected, units=64)
    assert case.error(expected) > 0.1


def test_flex_attention_says_where_blocks_are_unequal(case):
    found = planned(case, "svg2")
    row = baselines.measure_baseline(case, "flex", lambda: baselines.flex_attention(found))
    assert row["remark"] == "skipped: blocks of unequal size"
    found = planned(case)
    row = baselines.measure_baseline(case, "flex", lambda: baselines.flex_attention(found))
    assert "needs a GPU" in row["remark"]
