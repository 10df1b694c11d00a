"""The bars of speed: met, not met or open, and why; the tables here are made up."""

import copy
import json

import pytest
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.cost import gate as pack_gate
from dit_accel.accel.attention.cost.costs import Size, predicted_costs
from dit_accel.accel.attention.cost.fits import Fit, write_fit
from dit_accel.accel.cli import bench_attention, machine
from dit_accel.accel.cli.row_file import Rows
from dit_accel.tests.bench import baselines
from dit_accel.tests.bench.__main__ import main
from dit_accel.tests.bench.bars import attention, every, gate, others, planning
from dit_accel.tests.bench.bars import rows as choosing
from dit_accel.tests.bench.commands import bars as bench_bars
from dit_accel.tests.support.bar_tables import CARD, H200, HALF, INT8_FP8, mine, tables


@pytest.fixture(name="tables")
def _tables():
    return tables()


def judged(tables, what):
    """The only bar whose name holds these words, or starts with them."""
    lines = every.judge(tables)
    (line,) = [line for line in lines if what in line["what"]]
    return line


def test_all_of_them_can_be_met(tables):
    lines = every.judge(tables)
    assert {line["verdict"] for line in lines} == {"met"}, [line for line in lines if line["verdict"] != "met"]
    assert len({line["what"] for line in lines}) == len(lines) == len(every.BARS)
    assert every.state(lines) == f"Of {len(lines)} bars {len(lines)} are met, 0 are not met and 0 are open."
    for name in ("attention", "growth", "short", "planning"):
        tables[name] = [row | {"valid": False, "remark": "failed: out of resources"} for row in tables[name]]
    assert {line["verdict"] for line in every.judge(tables)} == {"met", "open"}


def test_without_any_table_all_are_open():
    lines = every.judge({})
    assert {line["verdict"] for line in lines} == {"open"} and all(line["why"] for line in lines)
    assert every.state(lines).endswith(f"and {len(lines)} are open: nothing has been measured on an H200.")


def test_the_numbers(tables):
    """The slower of our two medians, the faster of the others'."""
    value = {line["what"]: line["value"] for line in every.judge(tables)}
    slow = 1.001
    assert value["svg2, 16-bit executor: useful FLOP/s of the best 16-bit dense"] == pytest.approx(0.9 / slow)
    assert value["svg2, 8-bit with FP8 PV: executor against 16-bit"] == pytest.approx(1.5 / slow)
    half, eight = 160 * 0.25 / 0.9 + 4, 160 * 0.25 / 0.9 / 1.5 + 4
    whole = "whole call at density 0.25 against the best"
    assert value[f"tree, 16-bit: {whole} 16-bit dense"] == pytest.approx(160 / half / slow)
    assert value[f"tree, 8-bit: {whole} 16-bit dense"] == pytest.approx(160 / eight / slow)
    assert value[f"tree, 8-bit: {whole} 8-bit dense"] == pytest.approx(100 / eight / slow)
    assert value["svg2, 16-bit: extra peak memory over q + k + v"] == pytest.approx(1)
    assert value["svg2: planning and gathers of a later call, of the best 16-bit dense"] == pytest.approx(6 / 160)
    assert value["k-means against flash-kmeans"] == pytest.approx(20 / 9)
    assert value["a forward of Wan 14B, sparse against dense"] == pytest.approx(2 / slow)
    assert value["first calls of svg2, svg_ear, tree, compiling included"] == 9


def each(pattern=None, **changes):
    """Changes rows, those of a pattern or all; a number multiplies what is there."""

    def change(rows):
        for row in rows:
            if pattern in (None, row.get("pattern"), row.get("path"), row.get("way"), row.get("check")):
                for name, value in changes.items():
                    is_factor = isinstance(value, float) and row.get(name) is not None
                    row[name] = row[name] * value if is_factor else value

    return change


def slow_in(name, tokens, factor):
    def change(rows):
        for row in rows:
            if row["tokens"] == tokens:
                row[f"{name}_again_ms"] *= factor

    return change


SKIPPED = {
    "valid": False,
    "remark": "skipped: flash-attn-3 cannot be imported (No module named 'flash_attn_interface')",
}
WHOLE = "svg2, 16-bit: whole call"
EXECUTOR = "svg2, 16-bit executor"
CLIP = "projections of a drawn clip"


@pytest.mark.parametrize(
    ("table", "change", "what", "verdict", "why"),
    [
        ("attention", each("svg2", kernel_again_ms=1.5), EXECUTOR, "not met", ""),
        ("attention", each("svg2", kernel_again_ms=1.3), EXECUTOR, "met", ""),
        ("attention", each("tree", kernel_again_ms=1.07), "tree, 16-bit executor", "not met", ""),
        ("attention", each("svg2", plan_again_ms=6.0), WHOLE, "not met", ""),
        ("attention", each("flash-attn 3", **SKIPPED), WHOLE, "open", "flash-attn 3 " + SKIPPED["remark"]),
        ("attention", each("sdpa cudnn", valid=False, remark="skipped: x"), WHOLE, "open", "sdpa cudnn skipped: x"),
        ("attention", each("sdpa math", valid=False, remark="skipped: memory"), WHOLE, "met", ""),
        ("attention", lambda rows: rows.pop(3), WHOLE, "open", "flash-attn 3 has no row"),
        ("attention", each("svg2", valid=False, remark="failed: x"), EXECUTOR, "open", "svg2, 16-bit: failed: x"),
        ("attention", each(machine="NVIDIA H100; torch"), EXECUTOR, "open", "measured on NVIDIA H100"),
        ("attention", each(heads=12), EXECUTOR, "open", "measured at 75,600 x 12 x 128 instead of 75,600 x 40 x 128"),
        ("attention", each(inputs=CLIP), "svg2: whole call against sol", "open", "not measured on captures"),
        ("attention", each(inputs=CLIP), EXECUTOR, "open", "not measured on captures"),
        ("planning", each(inputs=CLIP), "svg_ear: planning and", "open", "not measured on captures"),
        ("attention", each("sol_attn", kernel_ms=0.5), "svg2: whole call against sol", "not met", ""),
        ("attention", each("sol_attn", error=9.0), "svg2: whole call against sol", "open", "lies outside of svg2's"),
        ("attention", each("sol_attn", valid=False, remark="skipped: y"), "tree: whole call against", "open", "y"),
        ("attention", each("svg2", peak_bytes=1.4), "svg2, 16-bit: extra", "not met", ""),
        ("attention", each("svg2", peak_bytes=1.7), "svg2, 8-bit: extra", "not met", ""),
        ("attention", each(peak_bytes=None), "svg2, 8-bit: extra", "open", "GPUs only"),
        ("head64", each("tree", valid=False, remark="failed: z"), "tree, 8-bit, heads of 64", "open", "failed: z"),
        ("planning", each("svg_ear", steps_again_ms={"a": 8.0, "b": 0.1}), "svg_ear: planning and", "not met", ""),
        ("planning", each(inputs_sha256="other"), "svg2: planning and", "open", "sdpa flash has no row"),
        ("planning", lambda rows: rows.pop(), "k-means labels against", "open", "flash-kmeans labels has no row"),
        ("growth", slow_in("kernel", 201_600, 1.12), "tree: executor time", "not met", ""),
        ("growth", slow_in("kernel", 75_600, 1.12), "tree: executor time", "not met", ""),
        ("growth", slow_in("plan", 16_380, 1.3), "svg2: planning time", "not met", ""),
        ("growth", slow_in("plan", 16_380, 1.2), "svg2: planning time", "met", ""),
        ("growth", lambda rows: rows.pop(), "tree: executor time", "open", "no row near 200,000 tokens"),
        ("short", each("svg2", plan_again_ms=3.0), "gate lets run sparse, costs measured", "not met", ""),
        ("short", each("svg2", plan_again_ms=3.0, density=4.0), "gate lets run sparse, costs measured", "met", ""),
        ("gate", lambda rows: rows.clear(), "costs measured on the card", "open", "no table gate"),
        ("first_calls", each("svg2", seconds=2.0), "first calls", "not met", ""),
        ("first_calls", lambda rows: rows.pop(), "first calls", "open", "no first call of tree"),
        ("first_calls", each(backend="reference"), "first calls", "open", "nothing was compiled"),
        ("checks", each(others.GPU_TESTS, problems=1), "gpu tests", "not met", ""),
        ("checks", lambda rows: rows.pop(0), "gpu tests", "open", "1 of 2 did not run"),
        ("checks", each("memcheck", problems=None, remark="skipped: no tool"), "memcheck", "open", "skipped: no tool"),
        ("checks", each("racecheck", problems=3), "racecheck", "not met", ""),
        ("linear", each("torch fp8", valid=False, remark="skipped: no GPU"), "torch fp8", "open", "skipped: no GPU"),
        ("dcae", each("diffusers", valid=False, remark="skipped: w"), "1024 pixels", "open", "diffusers skipped: w"),
        ("forward", each(valid=False, remark="failed: v"), "a block", "open", "svg2 failed: v"),
    ],
)
def test_what_changes_a_verdict(tables, table, change, what, verdict, why):
    assert judged(tables, what)["verdict"] == "met"
    change(tables[table])
    line = judged(tables, what)
    assert (line["verdict"], why in line["why"]) == (verdict, True), line
    assert bool(line["why"]) == (verdict == "open")
    if "measured" in why:
        assert line["measured"]


def test_a_bar_that_is_missed_stays_so_whatever_else_is_missing(tables):
    each("flash-attn 3", **SKIPPED)(tables["attention"])
    each("svg2", kernel_again_ms=2.0)(tables["attention"])
    assert judged(tables, EXECUTOR)["verdict"] == "not met"


def test_a_drawn_clip_beside_captures_changes_nothing(tables):
    drawn = copy.deepcopy(tables["attention"])
    each(inputs_sha256="other", inputs=CLIP)(drawn)
    each("svg2", kernel_again_ms=1.5)(drawn)
    tables["attention"] += drawn
    line = judged(tables, EXECUTOR)
    assert line["verdict"] == "met" and CLIP not in line["on"]


def test_the_worst_of_several_captures_counts(tables):
    other = copy.deepcopy(tables["attention"])
    each(inputs_sha256="other", inputs="wan.safetensors block 7")(other)
    each("svg2", kernel_again_ms=1.5)(other)
    tables["attention"] += other
    line = judged(tables, EXECUTOR)
    assert line["verdict"] == "not met" and "block 7" in line["on"]


def test_equal_error_is_read_off_straight_lines_through_logarithms():
    points = [(0.01, 100.0), (0.1, 10.0), (0.04, 25.0)]  # ms = 1 / error
    assert attention.interpolated(points, 0.02) == pytest.approx(50)
    assert attention.interpolated(points, 0.1) == pytest.approx(10)
    assert attention.interpolated(points, 0.101) is None and attention.interpolated(points, 0.009) is None


def test_the_formats_that_are_fastest_at_that_error_count(tables):
    """At error 0.03 the densities 0.25 (0.04) and 0.4 (0.025) stand on either side."""
    points = [(0.01 / density, (160 * density / 0.9 / 1.5 + 4) * 1.001) for density in (0.25, 0.4)]
    expected = 80 / attention.interpolated(points, 0.03)
    assert judged(tables, "svg2: whole call against sol")["value"] == pytest.approx(expected)


def test_every_dense_peer_of_the_bench_has_its_place():
    named = [*choosing.DENSE_16, *choosing.DENSE_8, "sdpa math"]
    assert sorted(named) == sorted(baselines.DENSE)


@pytest.mark.parametrize("measured", [False, True])
def test_the_gate_of_the_bars_decides_as_the_pack_does(monkeypatch, tmp_path, measured):
    here = pack_gate.Here("NVIDIA H200", gate.CHIP)
    monkeypatch.setattr(pack_gate, "card_at", lambda device: here)
    costs = predicted_costs(gate.CHIP)
    margin = pack_gate.MEASURED if measured else pack_gate.MARGIN
    if measured:
        monkeypatch.setattr(pack_gate, "software", lambda: {})
    fits = [Fit(here.name, {}, costs, tmp_path)] if measured else []
    seen = set()
    for tokens, grid in ((4680, (3, 30, 52)), (14_040, (9, 30, 52)), (32_760, (21, 30, 52))):
        for pattern in attention.PATTERNS:
            for formats, precision in ((HALF, "16-bit"), (INT8_FP8, "8-bit")):
                for density in (0.1, 0.3, 0.7, 0.9):
                    row = mine(pattern, density, formats, 1.0, 1.0, tokens=tokens, heads=12, grid=grid)
                    judge = pack_gate.Gate(fits)
                    judge.learn({"call": density})
                    size = Size(12, tokens, tokens, 128)
                    arguments = "call", size, torch.device("cpu"), pattern, Budget(), precision, True
                    decided = judge.dense_is_faster(*arguments)
                    assert gate.stays_dense(row, costs, margin) == decided
                    seen.add(decided)
    assert seen == {True, False}


def test_rows_of_an_h200_come_first():
    rows = [{"machine": machine, "n": n} for n, machine in enumerate(("CPU; a", H200, "NVIDIA H200; b", "CPU; b"))]
    assert [row["n"] for row in every.of_one_machine(rows)] == [2]
    assert [row["n"] for row in every.of_one_machine([rows[0], rows[3]])] == [3]
    assert every.of_one_machine([]) == []


def test_the_command(tables, tmp_path, monkeypatch, capsys):
    """Tables by the format of their files, three of them by the files' names."""
    kinds = {name: kind for kind, name in bench_bars.TABLES.items()} | dict.fromkeys(
        (bench_bars.GROWTH, bench_bars.SHORT, bench_bars.HEAD64), bench_attention.KIND
    )
    where = {"device": "NVIDIA H200", "torch": "2.11.0", "pack": "0.1.0", "driver": "570.1", "triton": "3.6.0"}
    files = []
    for name, rows in tables.items():
        files.append(tmp_path / f"{name}.json")
        if name == bench_bars.GATE:
            software = {"torch": "2.11.0", "triton": "3.6.0"}
            write_fit(Fit("NVIDIA H200", software, CARD, files[-1]), [])
            continue
        kept = Rows(files[-1], kinds[name], where, resume=False)
        for row in rows:
            kept.add(row)
    path = tmp_path / "bars.json"
    assert main(["bars", *map(str, files), "--json", str(path)]) == 0
    lines = every.judge(tables)
    text = capsys.readouterr().out
    assert bench_bars.show(lines) in text and every.state(lines) in text
    written = json.loads(path.read_text("utf-8"))
    assert written["rows"] == lines and written["machine"] == where and len(written["files"]) == len(files)
    # Growth under another name is a table of attention like any other.
    files[0].unlink()
    growing = files[[*tables].index("growth")].rename(tmp_path / "other.json")
    assert main(["bars", str(growing)]) == 0
    assert "instead of 75,600 x 40 x 128" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["rows.json", "gate.json"])
def test_a_file_of_something_else_is_named(tmp_path, capsys, name):
    path = tmp_path / name
    path.write_text("{}", "utf-8")
    assert main(["bars", str(path)]) == 1
    assert f"{path}: expected" in capsys.readouterr().err


def test_a_gpu_machine_says_driver_and_triton(monkeypatch):
    said = machine.subprocess.CompletedProcess([], 0, stdout="570.133.20\n570.133.20\n")
    monkeypatch.setattr(machine.subprocess, "run", lambda command, **_: said)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    found = machine.machine("")
    assert found["driver"] == "570.133.20" and found["triton"].startswith("3.")

    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(machine.subprocess, "run", missing)
    assert machine.machine("")["driver"] is None


def test_planning_without_dense_rows_is_held_against_what_torch_runs(tables):
    found = planning.share("svg2", {"planning": tables["planning"]})
    assert found.value == 6 / 200 and found.missing
