"""What runs at 8 bits, and the measured numbers that auto decides by."""

import json
from pathlib import Path

import pytest

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.executor import execute
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.precision import OWN_ERROR, choose_formats
from dit_accel.accel.attention.profiles.profile import Profile
from dit_accel.accel.bench.inputs import captured_inputs
from dit_accel.kernels.attention_configs import FORMATS
from dit_accel.kernels.quantise import FP8, INT8, Formats
from dit_accel.tests.support.calls import make_call

TESTS = Path(__file__).resolve().parents[1]
INT8_ALONE, INT8_AND_FP8, FP8_VALUES = Formats(INT8, None), Formats(INT8, FP8), Formats(None, FP8)


@pytest.mark.parametrize(
    ("chip", "formats"),
    [
        *dict.fromkeys(("sm_80", "sm_86", "sm_87", "gfx942", "gfx1100", "gfx1201"), INT8_ALONE).items(),
        *dict.fromkeys(("sm_89", "sm_90", "sm_120", "sm_121"), INT8_AND_FP8).items(),
        *dict.fromkeys(("sm_100", "sm_103"), FP8_VALUES).items(),
    ],
)
def test_8_bit_takes_what_the_chip_has(chip, formats):
    assert choose_formats("8-bit", "svg2", Budget(), chip, faster=False) == formats


@pytest.mark.parametrize("chip", FORMATS)
def test_16_bit_is_16_bit(chip):
    assert choose_formats("16-bit", "svg2", Budget(top_p=0.1), chip, faster=True) is None


def test_auto_waits_for_a_measurement():
    assert all(choose_formats("auto", "svg2", Budget(top_p=0.1), chip, faster=False) is None for chip in FORMATS)


@pytest.mark.parametrize(
    ("pattern", "top_p", "formats"),
    [
        ("svg2", 0.7, INT8_AND_FP8),
        ("svg2", 0.9, INT8_ALONE),
        ("svg2", 0.95, None),
        ("svg2", 1.0, None),
        ("pooled", 0.85, INT8_ALONE),
        ("svg_ear", 0.7, INT8_ALONE),
        ("svg_ear", 0.9, None),
    ],
)
def test_auto_loses_a_third_of_what_the_pattern_loses(pattern, top_p, formats):
    assert choose_formats("auto", pattern, Budget(top_p=top_p), "sm_90", faster=True) == formats


@pytest.mark.parametrize("formats", OWN_ERROR)
def test_rounding_costs_at_most_its_number(formats):
    """To which the kernel adds the rounding of attention weights, about 1 % in FP8."""
    worst = 0.0
    for inputs in captured_inputs(TESTS / "golden" / "small_capture.safetensors"):
        q, k, v = (x.float() for x in inputs[:3])
        call = make_call(q, k, v, inputs.layout)
        plan = PATTERNS["svg2"].plan(call, Budget(top_p=0.8).spending())
        exact, out = (
            execute(q, k, v, plan, formats=chosen, scale=call.scale, backend="reference") for chosen in (None, formats)
        )
        worst = max(worst, float((out - exact).norm() / exact.norm()))
    assert 0.5 * OWN_ERROR[formats] < worst <= OWN_ERROR[formats]


def test_what_dropped_mass_costs_was_measured():
    """The number of each pattern is at most what the published table says, in the mean over the calls; a pattern that
    is not in the table has none."""
    rows = json.loads((TESTS / "bench" / "results" / "quality_cpu.json").read_text("utf-8"))["rows"]
    measured = {row["source"].split()[0] for row in rows}
    assert {"svg2", "svg_ear", "tree", "svg1", "radial", "window", "pooled"} <= measured
    for name, pattern in PATTERNS.items():
        tail = pattern.planning.tail
        mine = [row for row in rows if row["source"].split()[0] == name and row["tail"] == tail]
        if not mine:
            assert pattern.error_of_dropped_mass == 0, f"{name}: no row of quality_cpu.json measures it"
            continue
        ratios = []
        for key in {(row["source"], row["asked_density"]) for row in mine}:
            some = [row for row in mine if (row["source"], row["asked_density"]) == key]
            ratios.append(sum(row["error"] for row in some) / sum(1 - row["mass"] for row in some))
        assert 0.6 * min(ratios) <= pattern.error_of_dropped_mass <= min(ratios), (name, min(ratios))


@pytest.mark.parametrize(
    ("promised", "formats"), [(0.05, Formats(INT8, None)), (0.04, None), (0.2, Formats(INT8, FP8))]
)
def test_with_a_profile_auto_may_lose_a_third_of_what_it_promises(promised, formats):
    profile = Profile(
        "svg2", "WanModel", (3,), 1, 1, 0.02, 1.0, ((0.9,),), (0.3,), (promised,), "error", promised, True
    )
    budget = Budget(top_p=0.3, profile=profile)
    assert choose_formats("auto", "svg2", budget, "sm_90", faster=True, block=3) == formats
