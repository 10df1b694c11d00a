"""The bench's file: whole after every row, gone on with where it was stopped, and shown as it was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dit_accel.accel.bench import sweep
from dit_accel.accel.cli import bench_attention
from dit_accel.tests.bench.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--drawn", "2x8x8", "--heads", "1", "--repeats", "1"]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def attention(path, *more):
    return main(["attention", *TINY, "--pattern", "window", "pooled", "--json", str(path), *more])


def rows(path):
    return json.loads(path.read_text("utf-8"))["rows"]


def names(path):
    return [(row["pattern"], row.get("formats")) for row in rows(path)]


def test_a_killed_run_keeps_its_rows_and_goes_on(tmp_path, monkeypatch, capsys):
    path, measure, measured = tmp_path / "rows.json", sweep.measure, []

    def killed(planned, formats):
        if measured:
            raise KeyboardInterrupt
        measured.append(planned.pattern)
        return measure(planned, formats)

    monkeypatch.setattr(sweep, "measure", killed)
    options = ["--density", "0.5", "--no-baselines", "--precision", "16-bit", "8-bit"]
    with pytest.raises(KeyboardInterrupt):
        attention(path, *options)
    assert names(path) == [("window", "float32")]
    assert list(tmp_path.iterdir()) == [path]

    monkeypatch.setattr(
        sweep, "measure", lambda planned, formats: measured.append(planned.pattern) or measure(planned, formats)
    )
    assert attention(path, *options, "--resume") == 0
    assert measured == ["window", "window", "pooled", "pooled"]
    every = [(pattern, formats) for pattern in ("window", "pooled") for formats in ("float32", "int8 x float32")]
    assert names(path) == every
    assert attention(path, *options, "--resume") == 0
    assert len(measured) == 4
    # Another density or machine is another row; without --resume all is measured again.
    assert attention(path, *options, "--resume", "--density", "0.55") == 0
    assert len(measured) == 8
    monkeypatch.setattr("dit_accel.accel.cli.machine.PACK_VERSION", "another")
    assert attention(path, *options, "--resume") == 0
    assert len(measured) == 12
    assert attention(path, *options) == 0
    assert names(path) == every


def test_a_row_of_ours_that_fails_is_shown_and_tried_again(tmp_path, monkeypatch, capsys):
    path, measure = tmp_path / "rows.json", sweep.measure

    def fail(planned, formats):
        if planned.pattern == "window":
            raise RuntimeError("out of resources")
        return measure(planned, formats)

    monkeypatch.setattr(sweep, "measure", fail)
    assert attention(path, "--no-baselines") == 1
    assert "failed: RuntimeError: out of resources" in capsys.readouterr().out.split("not measured")[1]
    monkeypatch.setattr(sweep, "measure", measure)
    assert attention(path, "--no-baselines", "--resume") == 0
    assert names(path) == [("pooled", "float32"), ("window", "float32")]


def test_baselines_are_rows_and_their_reasons_are_in_table_and_file(tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert attention(path, "--density", "0.5") == 0
    found = {row["pattern"]: row for row in rows(path)}
    assert {"sdpa math", "sdpa flash", "flash-attn 4", "comfy-kitchen int8", "sol_attn"} < set(found)
    assert {"flex_attention as window", "flex_attention as pooled"} < set(found)
    text = capsys.readouterr().out
    for row in found.values():
        if not row["valid"]:
            assert row["remark"].startswith("skipped: ") and row["remark"] in text
    assert attention(path, "--density", "0.5", "--resume") == 0
    assert len(rows(path)) == len(found)


def test_a_density_out_of_reach_is_said_once(tmp_path, capsys):
    path = tmp_path / "rows.json"
    options = ["attention", *TINY, "--pattern", "svg1", "--density", "0.1", "--no-baselines"]
    for _ in range(2):
        assert main([*options, "--json", str(path), "--resume"]) == 0
    (row,) = rows(path)
    assert "cannot give that density" in row["remark"] and not row["valid"]


def test_speed_ups_are_over_the_fastest_dense_attention_and_the_slower_medians():
    dense = {"inputs_sha256": "a", "inputs": "x", "asked": "everything", "valid": True, "error": 0.0}
    ours = {"inputs_sha256": "a", "inputs": "x", "asked": "density 0.3", "pattern": "svg2", "valid": True, "error": 0.1}
    ours |= {"dense_ms": 80.0, "dense_again_ms": 72.0}
    given = [
        {**dense, "pattern": "slow", "kernel_ms": 90.0, "kernel_again_ms": 90.0},
        {**dense, "pattern": "fast", "kernel_ms": 50.0, "kernel_again_ms": 40.0},
        {**ours, "plan_ms": 1.0, "plan_again_ms": 2.0, "kernel_ms": 8.0, "kernel_again_ms": 6.0},
    ]
    assert bench_attention.show(given).splitlines()[-1].split()[-1] == "4.00"
    given[1]["valid"] = False
    assert bench_attention.show(given).splitlines()[-1].split()[-1] == "7.20"
    assert bench_attention.show(given[2:]).splitlines()[-1].split()[-1] == "7.20"


MACHINE = {"device": "d", "torch": "t", "pack": "p"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "found no machine or no rows"),
        ([3], "each with its machine, found 3"),
        ([{"machine": None}], "each with its machine, found {'machine': None}"),
        ([{"machine": "m", "error": "x"}], "expected the fields that the bench writes, found others"),
        ([{"machine": "m"}], "expected the fields that the bench writes, found others (KeyError('pattern'))"),
    ],
)
def test_rows_of_something_else_are_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys, rows, words):
    monkeypatch.setattr(sweep, "measure", lambda *_: pytest.fail("measured"))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"format": bench_attention.KIND, "version": 2, "machine": MACHINE, "rows": rows}))
    assert attention(path, "--resume", "--no-baselines") == 1
    error = capsys.readouterr().err
    assert f"--resume: {path}" in error and words in error
    assert main(["show", str(path)]) == 1
    error = capsys.readouterr().err
    assert f"files: {path}" in error and words in error


@pytest.mark.parametrize("content", ["text", "[]", '{"format": "dit-accel/bench-quality", "version": 1, "rows": []}'])
def test_a_file_that_cannot_be_gone_on_with_is_named(tmp_path, capsys, content):
    path = tmp_path / "rows.json"
    path.write_text(content)
    assert attention(path, "--resume") == 1
    error = capsys.readouterr().err
    assert "--resume: " in error and "rows.json" in error and "expected rows of dit-accel/bench-attention" in error
    assert path.read_text() == content


@pytest.mark.parametrize("grid", ["3x4", "0x4x4", "axbxc"])
def test_a_bad_grid_is_named(grid, capsys):
    with pytest.raises(SystemExit):
        main(["attention", "--drawn", grid])
    assert f"found {grid}" in capsys.readouterr().err


@pytest.mark.thorough
def test_the_gpu_script_makes_its_tables_and_goes_on(tmp_path):
    """Tiny inputs through the reference, from the repository as it lies there: nothing is installed for the script,
    and peers may lie in a folder of the caller's."""
    out, peers = tmp_path / "out", tmp_path / "peers"
    peers.mkdir()
    (peers / "sageattention.py").write_text("raise ImportError('found where the caller keeps it')", "utf-8")
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(peers),
    }
    script = [str(ROOT / "tests" / "bench" / "gpu_table.sh"), "-q", "-o", str(out), "-s", "planning head64 linear"]
    result = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("all done: planning head64 linear\n")
    table = (out / "table.txt").read_text("utf-8")
    assert "planning.json: CPU" in table and "head64.json: CPU" in table and "sdpa math" in table
    assert rows(out / "head64.json")[0]["head_dim"] == 64
    assert "nothing has been measured on an H200." in table
    assert "sageattention cannot be imported (found where the caller keeps it)" in table
    assert {path.name for path in out.iterdir()} == {
        "planning.json",
        "head64.json",
        "linear.json",
        "bars.json",
        "steps.txt",
        "table.txt",
    }
    (out / "steps.txt").write_text("planning done 1\nlinear done 0\nhead64 stopped 1195\n")
    result = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "not done: head64; 4 seconds left" in result.stdout
    assert "== planning" not in result.stdout
