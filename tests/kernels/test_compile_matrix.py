"""Every kernel compiles for every chip, within its shared memory, without spilling, for its matrix units; and for some
chips with every Triton that is supported.

`pytest -s` shows the table.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dit_accel import kernels
from dit_accel.kernels import registry
from dit_accel.tests.support.tritons import VERSIONS, unpacked_triton

COMPILER = Path(__file__).with_name("compile_for.py")
SOURCES = [*sorted(Path(kernels.__file__).parent.rglob("*.py")), COMPILER]

KIB = 1024
CHIPS = {  # bytes of shared memory that one program may use, and the fastest matrix instruction
    "sm_80": (163 * KIB, "mma.sync"),
    "sm_86": (99 * KIB, "mma.sync"),
    "sm_89": (99 * KIB, "mma.sync"),
    "sm_90": (227 * KIB, "wgmma"),
    "sm_100": (227 * KIB, "tcgen05.mma"),
    "sm_120": (99 * KIB, "mma.sync"),
    "gfx942": (64 * KIB, "v_mfma"),
    "gfx1100": (64 * KIB, "v_wmma"),
    "gfx1201": (64 * KIB, "v_wmma"),
}
NVIDIA = ("mma.sync", "wgmma", "tcgen05.mma")
# Bytes of local memory a thread. A row of 16,384 key blocks is held in registers and does not quite fit; on sm_120 one
# value waits there for the tail, outside the loops. With tall chunks it is three values, and 8 bytes of the call that
# stands beside every copy (attention_configs.py).
SPILLS = {"_select": 192, "_attend": 8}
TALL_SPILLS = {
    "sm_90": 0,
    "sm_100": 0,
    "sm_120": 24,
}  # _attend's there, on the chips that read them by tensor descriptor
KERNELS = {"_attend", "_gather", "_lists", "_quantise", "_assign", "_count", "_place", "_mean", "_error", "_select"}
KERNELS |= {"_axes", "_scores", "_halve", "_unpack", "_rows", "_scale"}
# A program of so many warps that tcgen05 does not serve it (kernels/triton/axis_tree.py).
OTHER_UNITS = {("sm_100", "_axes"): "mma.sync"}
# Their tiles, of as few as 16 rows, are too low for the fastest instructions.
LOW_TILES = {"_kv_sums", "_apply_sums", "_attend_part"}
KERNELS |= LOW_TILES
# Not with Triton 3.3 (kernels/group.py).
SINCE_3_4 = {"_count", "_place"}
# Machine instructions of a warp in a step of 64 keys through pointers, with INT8 keys and FP8 values.
STEP = {"sm_90": 600}
# How the names of matrix instructions spell the types that they multiply.
SPELLINGS = {"16-bit": "b?f16", "int8": "s8|iu?8", "fp8": "e4m3|f8f6f4"}


def compiled(chip: str, cache: pytest.Cache, version: str | None = None) -> list[dict]:
    """What compile_for.py found, with `--few` and one of VERSIONS if that is given and not the one that is installed;
    from pytest's cache while no source has changed."""
    if version == metadata.version("triton"):
        version = None
    digest = hashlib.sha256((version or metadata.version("triton")).encode())
    for path in SOURCES:
        digest.update(path.read_bytes())
    key = f"dit_accel/compiled_{chip}" + (f"_{version}" if version else "")
    stored = cache.get(key, {})
    if stored.get("sources") == digest.hexdigest():
        return stored["rows"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache.mkdir("dit_accel_triton"))
    command = [sys.executable, COMPILER, chip]
    if version:
        path = (unpacked_triton(version), environment.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(str(entry) for entry in path if entry)
        command.append("--few")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout)
    cache.set(key, {"sources": digest.hexdigest(), "rows": rows})
    return rows


def show(chip: str, rows: list[dict]) -> None:
    print(f"\n{chip:8} {'kernel':9} {'dtype':9} dim   lse  tail  tall keys   values", end=" ")
    print("registers spills shared copies step matrix")
    for row in rows:
        print(
            f"{'':8} {row['kernel']:9} {row['dtype']:9} {row['head_dim']:3} {row['lse']!s:>5} {row['tail']!s:>5}"
            f" {row['tall']!s:>5} {row['keys']:6} {row['values']:6} {row['registers']:9} {row['spills']:6}"
            f" {row['shared']:6} {row['copies']:6} {row['step']:4} {row['matrix']}"
        )


def check(chip: str, cache: pytest.Cache) -> None:
    rows = compiled(chip, cache)
    show(chip, rows)
    assert {row["kernel"] for row in rows} == KERNELS
    attention = [row for row in rows if row["kernel"] == "_attend"]
    formats = {(row["keys"], row["values"]) for row in attention}
    heights = 2 if chip in TALL_SPILLS else 1
    assert len(formats) >= 2 and len(attention) == heights * (12 + 6 * (len(formats) - 1))
    assert sum(row["tall"] for row in attention) == (heights - 1) * len(attention) // 2
    assert [row["kernel"] for row in rows].count("_lists") == 1  # the strides of a map make no variants
    shared, unit = CHIPS[chip]
    for row in rows:
        assert row["shared"] <= shared, row
        if row["kernel"] == "_attend" and row["tall"]:
            assert row["copies"] >= 2, row  # keys and values
            assert row["spills"] <= TALL_SPILLS[chip], row
        else:
            assert row["copies"] == 0, row
            assert row["spills"] <= SPILLS.get(row["kernel"], 0), row
        if row["kernel"] == "_attend" and unit in NVIDIA:
            assert row["step"] > 0 and row["bytes"] == 0, row
            if (row["tall"], row["keys"], row["values"]) == (False, "int8", "fp8"):
                assert row["step"] <= STEP.get(chip, row["step"]), row
        if row["kernel"] in ("_attend", "_assign", "_error", "_axes"):
            own = OTHER_UNITS.get((chip, row["kernel"]), unit)
            assert all(name.startswith(own) for name in row["matrix"].split()), row
            for types in {row["keys"], row["values"]} if row["kernel"] == "_attend" else {"16-bit"}:
                assert re.search(rf"[._:]({SPELLINGS[types]})\b", row["matrix"]), row
        elif row["kernel"] in LOW_TILES:
            assert re.search(SPELLINGS["16-bit"], row["matrix"]), row
        else:
            assert row["matrix"] == "none", row


@pytest.mark.thorough
@pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
def test_compiles(chip, pytestconfig):
    check(chip, pytestconfig.cache)


@pytest.mark.matrix
@pytest.mark.parametrize("chip", CHIPS)
def test_compiles_for_every_chip(chip, pytestconfig):
    check(chip, pytestconfig.cache)


@pytest.mark.matrix
@pytest.mark.parametrize("chip", ["sm_80", "sm_90", "sm_120", "gfx1100"])
@pytest.mark.parametrize("version", VERSIONS)
def test_compiles_with_every_triton(version, chip, pytestconfig):
    rows = compiled(chip, pytestconfig.cache, version)
    show(f"{chip} {version}", rows)
    assert {row["kernel"] for row in rows} == KERNELS - (SINCE_3_4 if version.startswith("3.3.") else set())
    formats = {(row["keys"], row["values"]) for row in rows if row["kernel"] == "_attend"}
    assert formats >= {("16-bit", "16-bit"), ("int8", "16-bit")}
    assert all(row["shared"] <= CHIPS[chip][0] for row in rows)
    descriptors = any(row["copies"] for row in rows)
    assert descriptors == (chip in TALL_SPILLS and not version.startswith("3.3."))


def test_the_oldest_and_the_newest_triton_are_the_ones_that_are_said_to_do():
    ends = tuple(tuple(map(int, version.split(".")[:2])) for version in (VERSIONS[0], VERSIONS[-1]))
    assert ends == registry.TRITONS


def test_a_missing_triton_is_said_and_fails_under_ci(monkeypatch, tmp_path):
    monkeypatch.setenv("DIT_ACCEL_TRITONS", str(tmp_path))
    command = f"pip install --no-deps --target {tmp_path / '3.4.0'} triton==3.4.0"
    for ci, outcome in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match=re.escape(command)):
            unpacked_triton("3.4.0")
