"""Budgets: the list of dense blocks, the checks, the presets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_accel.accel.attention.budget import PRESETS, Budget, make_budget, parse_blocks

NUMBERS = {
    "top_p": 0.9,
    "floor": 0.05,
    "max_density": 1.0,
    "dense_first": 0.2,
    "dense_last": 0.0,
    "min_tokens": 12288,
}


@pytest.mark.parametrize(
    ("text", "blocks"),
    [("", set()), ("0", {0}), (" 0, 1,47-49 ", {0, 1, 47, 48, 49}), ("3 - 5,", {3, 4, 5}), ("7-7", {7})],
)
def test_block_lists(text, blocks):
    assert parse_blocks(text) == blocks


@pytest.mark.parametrize("text", ["3-", "a", "-3", "1.5", "5-2", "1 2", "0x1", "0-99999999999", "9" * 5000, "٣"])
def test_bad_block_lists_name_the_input(text):
    with pytest.raises(ValueError, match="dense_blocks"):
        parse_blocks(text)


@given(st.sets(st.integers(0, 99)))
def test_block_lists_round_trip(blocks):
    assert parse_blocks(", ".join(map(str, blocks))) == blocks


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"top_p": 0.0}, "top_p"),
        ({"floor": 1.5}, "floor"),
        ({"max_density": 0.0}, "max_density"),
        ({"dense_first": 0.6, "dense_last": 0.5}, "dense_first and dense_last"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"top_p": float("nan")}, "top_p"),
    ],
)
@pytest.mark.parametrize("preset", ["custom", "turbo"])
def test_bad_numbers_are_refused_whatever_the_preset(change, name, preset):
    with pytest.raises(ValueError, match=name):
        make_budget(preset, "", **{**NUMBERS, **change})


def test_custom_uses_the_numbers_and_a_preset_ignores_them():
    custom = make_budget("custom", "1-2", **NUMBERS)
    assert (custom.top_p, custom.dense_blocks) == (0.9, {1, 2})
    assert make_budget("turbo", "1-2", **NUMBERS) == PRESETS["turbo"]
    with pytest.raises(ValueError, match="preset"):
        make_budget("fastest", "", **NUMBERS)


@pytest.mark.parametrize(("steps", "preset"), [(1, "few_step"), (10, "few_step"), (11, "faithful"), (30, "faithful")])
def test_auto_depends_on_the_steps(steps, preset):
    assert PRESETS["auto"].resolve(steps) == PRESETS[preset]
    assert Budget().resolve(steps) == Budget()


@pytest.mark.parametrize("steps", [4, 30])
@pytest.mark.parametrize("preset", ["custom", *PRESETS])
def test_every_preset_keeps_its_profile(preset, steps):
    profile = object()
    budget = make_budget(preset, "", profile, **NUMBERS)
    assert budget.profile is profile and budget.resolve(steps).profile is profile
    assert make_budget(preset, "", **NUMBERS).resolve(steps).profile is None


def test_presets_get_denser_from_turbo_to_faithful():
    spent = [PRESETS[name].top_p for name in ("turbo", "balanced", "faithful")]
    assert spent == sorted(spent)
