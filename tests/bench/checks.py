"""What has to be right on the device before its times count: `python -m dit_accel.tests.bench gpu_tests --json FILE`.

`gpu_tests` runs the tests marked gpu, a file at a time; `sanitizer` runs small_calls.py under compute-sanitizer's
memcheck and racecheck. A row for each: problems found (None where it could not run, with the reason as remark). What
ran without a problem is kept from one call to the next. `--log FILE` gets all output.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dit_accel.accel.cli.machine import machine
from dit_accel.accel.cli.row_file import Rows
from dit_accel.accel.cli.table import table
from dit_accel.tests.bench.bars.others import GPU_TESTS, MEMCHECK, RACECHECK
from dit_accel.tests.bench.commands import bars as bench_bars

ROOT = Path(__file__).resolve().parents[2]
SANITIZER = "compute-sanitizer"
# Application only: the compilers that Triton starts are none of ours. API errors: torch tries calls that may fail.
OPTIONS = ("--target-processes", "application-only", "--report-api-errors", "no", "--print-limit", "20")
Run = Callable[[Sequence[str], Mapping[str, str]], tuple[int, str]]
Done = Callable[..., bool]


def gpu_tests(run: Run, done: Done) -> Iterator[dict]:
    """A row for each file, whose problem is that it fails."""
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    pytest += ["-c", str(ROOT / "pyproject.toml"), "-m", "gpu"]
    for file in files:
        about = {"check": GPU_TESTS, "what": file.name, "of": len(files)}
        if not done(**about):
            status, output = run([*pytest, str(file)], {})
            last = (output.strip().splitlines() or [""])[-1]
            # Skipped tests leave a status of 0 behind.
            all_ran = " passed" in last and "skipped" not in last
            problems = 1 if status else 0 if all_ran else None
            yield about | {"problems": problems, "remark": last, "failed": problems != 0}


def sanitizer(run: Run, done: Done) -> Iterator[dict]:
    """A row for each tool."""
    for tool in (MEMCHECK, RACECHECK):
        about = {"check": tool, "what": tool, "of": 1}
        if done(**about):
            continue
        if not shutil.which(SANITIZER):
            yield about | {"problems": None, "remark": f"skipped: {SANITIZER} is not on the PATH", "failed": True}
            continue
        # Without torch's cache of memory: what is written beyond a tensor would else land in the cache unseen.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        driver = [sys.executable, "-m", "dit_accel.tests.bench", "small_calls"]
        status, output = run([SANITIZER, "--tool", tool, *OPTIONS, *driver], environment)
        yield about | summary(status, output)


def summary(status: int, output: str) -> dict:
    """What compute-sanitizer found: errors or hazards; None where the program under it did not end well."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", output)
    problems = int(counts[-1]) if counts else None
    if problems == 0 and (status or "backend triton" not in output):
        problems = None
    remark = (output.strip().splitlines() or ["no output"])[-1]
    return {"problems": problems, "remark": remark, "failed": problems != 0}


def logged(log: Path | None) -> Run:
    """Runs a command; its output is printed as it comes, kept in the log, and returned after the exit status."""

    def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
        lines = []
        with subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
                if log:
                    with log.open("a", encoding="utf-8") as file:
                        file.write(line)
        return process.returncode, "".join(lines)

    return run


def show(rows: Sequence[dict]) -> str:
    cells = [
        (row["check"], row["what"], "?" if row["problems"] is None else str(row["problems"]), row["remark"])
        for row in rows
    ]
    return table(("check", "what", "problems", "remark"), cells)


CHECKS = {check.__name__: check for check in (gpu_tests, sanitizer)}


def run(options: argparse.Namespace) -> int:
    """Makes options.check, prints the table, and writes options.json after every row if asked. Returns 1 where
    something failed or could not run."""
    rows = Rows(options.json, bench_bars.CHECKS, machine(""), resume=True)
    for row in CHECKS[options.check](logged(options.log), rows.of({})):
        rows.add(row)
    print(show(rows.rows))
    return int(any(row["failed"] for row in rows.rows))
