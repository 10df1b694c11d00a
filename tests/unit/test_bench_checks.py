"""The drivers of the GPU script: what they take for a problem, and that they run here."""

import json
import sys

import pytest
import torch

from dit_accel.accel.cli.row_file import Rows
from dit_accel.tests.bench import checks, first_calls, small_calls
from dit_accel.tests.bench.bars.others import FIRST_CALLS

CLEAN = "every operation ran on cuda, backend triton\n"
MACHINE = {"device": "NVIDIA H200", "torch": "2.11.0", "pack": "0.1.0"}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def never(**fields):
    return False


@pytest.mark.parametrize(
    ("status", "said", "problems"),
    [
        (0, CLEAN + "========= ERROR SUMMARY: 0 errors\n", 0),
        (0, CLEAN + "========= ERROR SUMMARY: 1 error\n", 1),
        (0, CLEAN + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0),
        (0, CLEAN + "========= RACECHECK SUMMARY: 12 hazards displayed (12 errors, 0 warnings)\n", 12),
        (1, "Traceback\n========= ERROR SUMMARY: 0 errors\n", None),
        (0, "every operation ran on cuda, backend reference\n========= ERROR SUMMARY: 0 errors\n", None),
        (1, "========= Error: no device\n", None),
        (1, "", None),
    ],
)
def test_what_compute_sanitizer_says(status, said, problems):
    found = checks.summary(status, said)
    assert found["problems"] == problems and found["failed"] == (problems != 0) and found["remark"]


def test_without_the_tool_the_rows_say_so(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    rows = list(checks.sanitizer(None, never))
    assert [row["check"] for row in rows] == ["memcheck", "racecheck"]
    assert {(row["problems"], row["remark"]) for row in rows} == {
        (None, "skipped: compute-sanitizer is not on the PATH")
    }


def test_the_tools_watch_the_driver(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda name: name)
    commands = []

    def run(command, environment):
        commands.append(" ".join(command))
        assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return 0, CLEAN + "========= ERROR SUMMARY: 0 errors\n"

    assert [row["problems"] for row in checks.sanitizer(run, never)] == [0, 0]
    assert all(f"--tool {tool}" in command for tool, command in zip(("memcheck", "racecheck"), commands, strict=True))
    assert all(command.endswith("-m dit_accel.tests.bench small_calls") for command in commands)


@pytest.mark.parametrize(
    ("status", "last", "problems"),
    [
        (0, "12 passed in 3.4s", 0),
        (1, "1 failed, 11 passed in 3.4s", 1),
        (0, "12 skipped in 0.1s", None),
        (0, "6 passed, 6 skipped in 0.1s", None),
        (4, "", 1),
    ],
)
def test_files_of_gpu_tests(tmp_path, status, last, problems):
    """Each is run until it passes; what passed is kept."""
    path, ran = tmp_path / "gpu_tests.json", []

    def run(command, environment):
        ran.append(command[-1].rpartition("/")[2])
        return (status, f"...\n{last}\n") if ran[-1] == "test_gate.py" else (0, "1 passed in 1s\n")

    def call():
        rows = Rows(path, "kind", MACHINE, resume=True)
        for row in checks.gpu_tests(run, rows.of({})):
            rows.add(row)
        return rows.rows

    files = sorted(file.name for file in (checks.ROOT / "tests" / "gpu").glob("test_*.py"))
    found = {row["what"]: row for row in call()}
    assert ran == sorted(found) == files and {row["of"] for row in found.values()} == {len(files)}
    assert found["test_gate.py"]["problems"] == problems
    assert all(row["problems"] == 0 for name, row in found.items() if name != "test_gate.py")
    call()
    assert ran[len(files) :] == ([] if problems == 0 else ["test_gate.py"])


def test_output_is_kept_and_returned(tmp_path, capfd):
    log = tmp_path / "log"
    command = [sys.executable, "-c", "import os, sys; print(os.environ['A']); sys.exit(3)"]
    assert checks.logged(log)(command, {"A": "word"}) == (3, "word\n")
    assert log.read_text("utf-8") == "word\n" and capfd.readouterr().out == "word\n"


def test_first_calls_of_every_pattern(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    path = tmp_path / "first_calls.json"
    first_calls.measure((2, 8, 8), 1, Rows(path, "kind", MACHINE, resume=False), "cpu", "reference")
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [row["pattern"] for row in rows] == list(FIRST_CALLS)
    assert all(row["seconds"] > 0 and row["again_seconds"] > 0 and row["kernels"] == 0 for row in rows)
    assert "svg_ear" in first_calls.show(rows)


def test_small_calls_reach_every_operation(capsys):
    small_calls.run(None)
    assert capsys.readouterr().out.endswith("every operation ran on cpu, backend reference\n")
