"""`dit-accel bench attention`: a table of sequence length x pattern, with dense attention beside it."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replacing
from . import Problem
from .checks import REFERENCE_NOTE, kernel_problem, need_clip, need_patterns, need_writable_file
from .table import table

if TYPE_CHECKING:
    from ..bench.inputs import Inputs

PROJECTIONS_NOTE = (
    "Inputs: patches of the Big Buck Bunny clip through fixed random projections; real content, but not a "
    "trained model's: `dit-accel capture` makes such ones."
)
CAPTURE_NOTE = "Inputs: what a trained model computed on real frames."
NOTE = "first plan: without a warm start. error: relative L2 against fp32 dense attention."


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json if asked. Raises Problem when something is missing."""
    if options.json:
        need_writable_file("--json", options.json)
    for module, name in (("torch", "torch"), ("av", "PyAV")):
        if importlib.util.find_spec(module) is None:
            raise Problem(f"{name} is missing; ComfyUI's requirements bring it: pip install -r requirements.txt there")
    import torch

    from ..attention.budget import Budget
    from ..attention.planners import PATTERNS
    from ..bench.attention import measure
    from .machine import machine

    patterns = options.pattern or list(PATTERNS)
    need_patterns(patterns)
    inputs, head_dim = _captured(options.capture) if options.capture else _projected(options)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    reason = kernel_problem(dtype, head_dim)
    where = machine(reason)
    print(f"{where['device']}; torch {where['torch']}; {where['platform']}", flush=True)

    budget = Budget(top_p=options.top_p, max_density=options.max_density)
    rows = [
        measure(
            one,
            pattern,
            budget=budget,
            repeats=options.repeats,
            device=device,
            backend="reference" if reason else "triton",
        )
        for one in inputs
        for pattern in patterns
    ]
    print(f"\n{show(rows)}\n\n{CAPTURE_NOTE if options.capture else PROJECTIONS_NOTE} {NOTE}")
    if reason:
        print(REFERENCE_NOTE.format(reason=reason))
    if options.json:
        report = {"format": "dit-accel/bench-attention", "version": 1, "machine": where, "rows": rows}
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


def _projected(options: argparse.Namespace) -> tuple[Iterable[Inputs], int]:
    from ..bench.inputs import video_inputs

    clip = need_clip()

    def make(tokens: int) -> Inputs:
        try:
            return video_inputs(clip, tokens, options.heads, options.head_dim)
        except ValueError as error:
            raise Problem(f"--{error}") from error

    return map(make, options.tokens), options.head_dim


def _captured(path: Path) -> tuple[Iterable[Inputs], int]:
    from ..bench.inputs import captured_inputs

    try:
        inputs = captured_inputs(path)
    except (ValueError, OSError) as error:
        raise Problem(f"--capture: {error}") from error
    return inputs, inputs[0].q.shape[-1]


def show(rows: list[dict[str, Any]]) -> str:
    header = ("inputs", "tokens", "heads", "pattern", "backend", "density", "error")
    header += ("first plan ms", "plan ms", "kernel ms", "dense ms", "dense error")
    cells = [
        (
            row["inputs"],
            str(row["tokens"]),
            str(row["heads"]),
            row["pattern"],
            row["backend"],
            f"{row['density']:.3f}",
            f"{row['error']:.4f}",
            *(f"{row[name]:.2f}" for name in ("first_plan_ms", "plan_ms", "kernel_ms", "dense_ms")),
            f"{row['dense_error']:.1e}",
        )
        for row in rows
    ]
    return table(header, cells)
