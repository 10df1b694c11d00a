"""Profiles: their file, and what they answer and refuse."""

import json
from dataclasses import replace

import pytest

from dit_accel.accel.attention.profiles.allocate import for_error
from dit_accel.accel.attention.profiles.profile import Profile, check_target, read_profile, write_profile
from dit_accel.accel.version import PACK_VERSION
from dit_accel.tests.support.recordings import random_recording

PROFILE = Profile(
    pattern="svg2",
    model="WanModel",
    layers=(0, 2, 3),
    calls=4,
    heads=2,
    floor=0.05,
    max_density=1.0,
    top_p=((0.9, 0.05), (1.0, 1.0), (0.123456789012345, 0.7)),
    density=(0.31, 1.0, 0.2),
    error=(0.05, 0.0, 0.0499),
    target="error",
    target_value=0.05,
    met=True,
    note="a step takes 4.1 s dense",
)


def test_a_file_brings_back_what_was_written(tmp_path):
    path = tmp_path / "models" / "dit_accel" / "a.json"
    for profile in (PROFILE, replace(PROFILE, target="speed", target_value=1.8, met=False), measured()):
        write_profile(path, profile)
        assert read_profile(path) == profile
    content = json.loads(path.read_text())
    assert (content["format"], content["version"], content["pack"]) == ("dit-accel/profile", 1, PACK_VERSION)
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def measured() -> Profile:
    return for_error(random_recording(0), 0.05)


def test_a_profile_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_profile(path, PROFILE)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_profile(path, replace(PROFILE, error=(float("nan"), 0.0, 0.0)))
    assert read_profile(path) == PROFILE
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


REFUSED = {
    "format": ("dit-accel/gate", "expected the format dit-accel/profile, version 1, found ('dit-accel/gate', 1)"),
    "version": (2, "expected the format dit-accel/profile, version 1, found ('dit-accel/profile', 2)"),
    "pattern": (7, "pattern: expected the name of a pattern, found 7"),
    "model": (None, "model: expected the name of a model's class, found None"),
    "layers": ([0, 3, 2], "layers: expected block numbers, rising, found [0, 3, 2]"),
    "heads": (0, "heads: expected a number of heads, found 0"),
    "calls": (-1, "calls: expected a number of calls, found -1"),
    "max_density": (0, "max_density: expected a number from 0.01 to 1, found 0"),
    "floor": (1.5, "floor: expected a number from 0 to 1, found 1.5"),
    "density": ([0.3, 1.1, 0.2], "density: expected a number from 0 to 1 for each layer, found [0.3, 1.1, 0.2]"),
    "error": ([-0.1, 0, 0], "error: expected a finite number, 0 or more, for each layer, found [-0.1, 0, 0]"),
    "target": ("size", "target: expected one of ['error', 'speed'], found 'size'"),
    "target_value": (1.5, "target_value: expected an error above 0 and up to 1, found 1.5"),
    "met": (1, "met: expected true or false, found 1"),
    "note": (["x"], "note: expected text, found ['x']"),
}
BAD = [
    *((name, value, message) for name, (value, message) in REFUSED.items()),
    ("layers", [], "layers: expected block numbers, rising, found []"),
    ("layers", [0, 2, 2.0], "layers: expected block numbers, rising, found [0, 2, 2.0]"),
    ("layers", [0, 2], "top_p: expected one for each of 2 layers, found 3"),
    ("density", [0.3, 0.4], "density: expected one for each of 3 layers, found 2"),
    ("error", [0.3] * 4, "error: expected one for each of 3 layers, found 4"),
    ("error", [0.3, 0.3, float("nan")], "error: expected a finite number, 0 or more, for each layer, found [0.3, 0.3,"),
    ("top_p", "0.9", "top_p: expected a row of numbers for each layer, found '0.9'"),
    (
        "top_p",
        [[0.9, 0.9], [0.9], [0.9, 0.9]],
        "top_p: expected numbers from 0.05 to 1 for 2 heads in the row of block 2, found [0.9]",
    ),
    (
        "top_p",
        [[0.9, 0.9], [0.9, 0.9], [0.04, 0.9]],
        "top_p: expected numbers from 0.05 to 1 for 2 heads in the row of block 3, found [0.04, 0.9]",
    ),
    (
        "top_p",
        [[0.9, True], [0.9, 0.9], [0.4, 0.9]],
        "top_p: expected numbers from 0.05 to 1 for 2 heads in the row of block 0, found [0.9, True]",
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_bad_file_is_refused_by_name_with_both_sides(tmp_path, name, value, message):
    path = tmp_path / "a.json"
    write_profile(path, PROFILE)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, name: value}))
    with pytest.raises(ValueError) as refused:
        read_profile(path)
    assert str(refused.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ("format", "version")])
def test_a_missing_field_is_named(tmp_path, name):
    path = tmp_path / "a.json"
    write_profile(path, PROFILE)
    content = json.loads(path.read_text())
    del content[name]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"a.json: {name}: expected .*, found nothing$"):
        read_profile(path)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_what_is_no_json_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json: expected a JSON file of the format dit-accel/profile, found "):
        read_profile(path)
    with pytest.raises(ValueError, match=r"b\.json: expected a JSON file of the format .*, found .*No such file"):
        read_profile(tmp_path / "b.json")


@pytest.mark.parametrize("text", ["[]", "3", "{}"])
def test_json_of_another_kind_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected the format dit-accel/profile, version 1, found"):
        read_profile(path)


def test_a_profile_of_something_else_is_refused_with_both_named():
    right = ("WanModel", 4, 2, "svg2")
    PROFILE.check(*right)
    for place, other in enumerate(("HunyuanVideo", 30, 24, "svg1")):
        found = (*right[:place], other, *right[place + 1 :])
        with pytest.raises(ValueError) as refused:
            PROFILE.check(*found)
        model, calls, heads, pattern = found
        assert str(refused.value) == (
            "profile: measured on WanModel with 4 attention layers of 2 heads and svg2, "
            f"found {model} with {calls} layers of {heads} heads and {pattern}"
        )


def test_blocks_are_found_by_their_number():
    assert PROFILE.row(3) == (0.123456789012345, 0.7)
    assert PROFILE.promised(3) == 0.05, "the target of all"
    assert replace(PROFILE, target="speed", target_value=2.0).promised(3) == 0.0499
    for ask in (PROFILE.row, PROFILE.promised):
        with pytest.raises(ValueError) as refused:
            ask(1)
        assert str(refused.value) == "profile: measured on 3 blocks of WanModel, from 0 to 3, found block 1"


@pytest.mark.parametrize("value", [0, -0.1, 1.01, float("nan"), True, "0.05"])
def test_errors_that_make_no_sense(value):
    with pytest.raises(ValueError, match="target_value: expected an error above 0 and up to 1, found"):
        check_target("error", value)


@pytest.mark.parametrize("value", [1, 0.5, float("inf"), float("nan")])
def test_speeds_that_make_no_sense(value):
    with pytest.raises(ValueError, match="target_value: expected a finite factor above 1, found"):
        check_target("speed", value)
