"""Every kernel compiles for every chip, within its shared memory, without spilling, for its matrix units.

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
# How the names of matrix instructions spell the types that they multiply.
SPELLINGS = {"16-bit": "b?f16", "int8": "s8|iu?8", "fp8": "e4m3|f8f6f4"}


def compiled(chip: str, cache: pytest.Cache) -> list[dict]:
    """What compile_for.py found; from pytest's cache while no source has changed."""
    digest = hashlib.sha256(metadata.version("triton").encode())
    for path in SOURCES:
        digest.update(path.read_bytes())
    key = f"dit_accel/compiled_{chip}"
    stored = cache.get(key, {})
    if stored.get("sources") == digest.hexdigest():
        return stored["rows"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache.mkdir("dit_accel_triton"))
    done = subprocess.run([sys.executable, COMPILER, chip], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout)
    cache.set(key, {"sources": digest.hexdigest(), "rows": rows})
    return rows


def check(chip: str, cache: pytest.Cache) -> None:
    rows = compiled(chip, cache)
    print(f"\n{chip:8} {'kernel':9} {'dtype':9} dim   lse  tail  tall keys   values", end=" ")
    print("registers spills shared copies matrix")
    for row in rows:
        print(
            f"{'':8} {row['kernel']:9} {row['dtype']:9} {row['head_dim']:3} {row['lse']!s:>5} {row['tail']!s:>5}"
            f" {row['tall']!s:>5} {row['keys']:6} {row['values']:6} {row['registers']:9} {row['spills']:6}"
            f" {row['shared']:6} {row['copies']:6} {row['matrix']}"
        )
    assert {row["kernel"] for row in rows} == KERNELS
    attention = [row for row in rows if row["kernel"] == "_attend"]
    formats = {(row["keys"], row["values"]) for row in attention}
    heights = 2 if chip in TALL_SPILLS else 1
    assert len(formats) >= 2 and len(attention) == heights * (12 + 8 * (len(formats) - 1))
    assert sum(row["tall"] for row in attention) == (heights - 1) * len(attention) // 2
    shared, unit = CHIPS[chip]
    for row in rows:
        assert row["shared"] <= shared, row
        if row["kernel"] == "_attend" and row["tall"]:
            assert row["copies"] >= 2, row  # keys and values
            assert row["spills"] <= TALL_SPILLS[chip], row
        else:
            assert row["copies"] == 0, row
            assert row["spills"] <= SPILLS.get(row["kernel"], 0), row
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
