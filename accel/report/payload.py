"""Finished runs as plain data for the browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..attention.account.run_summary import RunSummary
from ..attention.account.timeline import Grid
from .figures import finite

DIGITS = 4


def payload(runs: Sequence[tuple[str, RunSummary]], advice: Sequence[str], text: str) -> dict[str, Any]:
    """What JSON can hold: numbers rounded to 4 digits after the point, None for what was not measured or is no number.

    runs: (title, summary). A run's density, error and mass are [layer][step].
    """
    return {"runs": [_run(title, run) for title, run in runs], "advice": list(advice), "text": text}


def _run(title: str, run: RunSummary) -> dict[str, Any]:
    timeline = run.timeline
    return {
        "title": title,
        "layers": len(timeline.density),
        "steps": [
            {
                "number": step.number,
                "sigma": _number(step.sigma),
                "seconds": _number(step.seconds),
                "dense": step.dense,
            }
            for step in timeline.steps
        ],
        "density": _grid(timeline.density),
        "error": _grid(timeline.error),
        "mass": _grid(timeline.mass),
        "times": {name: _number(seconds) for name, seconds in asdict(timeline.times).items()},
        "dense": dict(run.dense),
        "guard": list(timeline.guard),
    }


def _grid(grid: Grid) -> list[list[float | None]]:
    return [[_number(value) for value in row] for row in grid]


def _number(value: float | None) -> float | None:
    value = finite(value)
    return None if value is None else round(value, DIGITS)
