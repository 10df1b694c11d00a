"""Choosing among rows of `bench attention`: inputs, the fastest dense attention, ours, faster and slower medians."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from dit_accel.tests.bench.bars.bar import Measured, Open, Row, Tables, joined

# Wan 2.1 14B at 720p, 81 frames: tokens, heads, channels of a head.
SIZE = (75_600, 40, 128)
# Whatever of these was not measured could have been the fastest. Not torch's "math": it writes the whole map.
DENSE_16 = ("sdpa flash", "sdpa cudnn", "sdpa efficient", "flash-attn 3", "flash-attn 4")
DENSE_8 = ("comfy-kitchen int8", "sageattention 1")
HALF, EIGHT, INT8_HALF, INT8_FP8 = "16-bit", "8-bit", "8-bit with 16-bit PV", "8-bit with FP8 PV"
ANY = "16 or 8 bits"
DRAWN = "projections of"  # begins the `inputs` that no trained model made


def is_of(kind: str, row: Row) -> bool:
    """Whether the formats of a row of ours are of such a kind."""
    formats, dtype = row["formats"], row["dtype"]
    return {
        ANY: True,
        HALF: formats == dtype,
        EIGHT: formats != dtype,
        INT8_HALF: formats == f"int8 x {dtype}",
        INT8_FP8: formats == "int8 x float8_e4m3fn",
    }[kind]


def faster(row: Row, part: str) -> float:
    """The lower one of the row's two medians of `kernel`, `plan` or `dense`, in milliseconds."""
    return min(row[f"{part}_ms"], row[f"{part}_again_ms"])


def slower(row: Row, part: str) -> float:
    """The higher one."""
    return max(row[f"{part}_ms"], row[f"{part}_again_ms"])


def call_ms(row: Row) -> float:
    """Plan and kernel of a row of ours, by their slower medians."""
    return slower(row, "plan") + slower(row, "kernel")


class Fastest(NamedTuple):
    """The fastest of some baselines, by its faster median. missing: those that were not measured, and why."""

    name: str
    ms: float
    missing: str


def fastest(rows: Sequence[Row], names: Sequence[str]) -> Fastest:
    """Of the rows of one inputs. Raises Open where none of them was measured."""
    valid = [row for row in rows if row["pattern"] in names and row["valid"]]
    measured = {row["pattern"] for row in valid}
    missing = joined(*(why_not(rows, name) for name in names if name not in measured))
    if not valid:
        raise Open(missing)
    best = min(valid, key=lambda row: faster(row, "kernel"))
    return Fastest(best["pattern"], faster(best, "kernel"), missing)


def ours(rows: Sequence[Row], pattern: str, kind: str, density: float | None = None) -> list[Row]:
    """The valid rows of a pattern in formats of a kind, at the density asked for or at all. Raises Open without any."""
    candidates = [row for row in rows if row["pattern"] == pattern and density in (None, row["asked_density"])]
    valid = [row for row in candidates if row["valid"] and is_of(kind, row)]
    if not valid:
        remarks = [row["remark"] for row in candidates if row["formats"] is None or is_of(kind, row)]
        at = "" if density is None else f" at density {density}"
        raise Open(f"{pattern}{at}, {kind}: {joined(*remarks) or 'no row'}")
    return valid


def why_not(rows: Sequence[Row], name: str) -> str:
    """Why a baseline was not measured, as its row says."""
    return f"{name} {next((row['remark'] for row in rows if row['pattern'] == name), 'has no row')}"


def on(row: Row) -> str:
    """What a row was measured on, in words."""
    return f"{row['asked']}, {row['inputs']}"


def by_inputs(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each inputs."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["inputs_sha256"], []).append(row)
    return list(groups.values())


def table_of(tables: Tables, name: str) -> Sequence[Row]:
    """Raises Open without such a table."""
    if not tables.get(name):
        raise Open(f"no table {name}")
    return tables[name]


def at_size(rows: Sequence[Row], measure: Callable[[list[Row]], Measured], worst: Callable) -> Measured:
    """The worst (min or max) of what is measured on every captured inputs of SIZE. Without such it is unfit, and that
    of the largest inputs, captured ones first."""

    def size(group: list[Row]) -> tuple[int, int, int]:
        return group[0]["tokens"], group[0]["heads"], group[0]["head_dim"]

    def captured(group: list[Row]) -> bool:
        return not group[0]["inputs"].startswith(DRAWN)

    groups = by_inputs(rows)
    right = [group for group in groups if size(group) == SIZE and captured(group)]
    if right:
        return worst(map(measure, right), key=lambda measured: measured.value)
    chosen = max(groups, key=lambda group: (size(group) == SIZE, size(group)[:2], captured(group)))
    tokens, heads, dim = size(chosen)
    other = f"measured at {tokens:,} x {heads} x {dim} instead of {SIZE[0]:,} x {SIZE[1]} x {SIZE[2]}"
    strange = joined(other if size(chosen) != SIZE else "", "" if captured(chosen) else "not measured on captures")
    return measure(chosen)._replace(unfit=strange)
