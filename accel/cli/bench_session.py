"""What every bench on attention inputs starts with: patterns, inputs, a file of rows, and whether a kernel can run."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from .bench_inputs import need_inputs
from .needs import kernel_problem, need_patterns, need_writable_file
from .row_file import Rows

if TYPE_CHECKING:
    from ..bench.case import Case
    from ..bench.inputs import Inputs


class Session(NamedTuple):
    """no_kernel_because: empty where one can run."""

    patterns: list[str]
    cases: Iterable[Case]
    rows: Rows
    no_kernel_because: str


def start(options: argparse.Namespace, kind: str) -> Session:
    """Checks what was asked for, and prints where the bench runs. Raises Problem when something is missing."""
    if options.json:
        need_writable_file("--json", options.json)
    make_inputs, head_dim = need_inputs(options)
    import torch

    from ..attention.planners import PATTERNS
    from ..bench.case import Case
    from ..bench.timing import default_repeats
    from .machine import machine

    patterns = options.pattern or list(PATTERNS)
    need_patterns(patterns)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usual = "bfloat16" if device == "cuda" else "float32"
    dtype = getattr(torch, vars(options).get("dtype") or usual)
    reason = kernel_problem(dtype, head_dim)
    where = machine(reason)
    rows = Rows(options.json, kind, where, resume=options.resume)
    print(f"{where['device']}; torch {where['torch']}; {where['platform']}", flush=True)

    def make_case(inputs: Inputs) -> Case:
        backend = "torch" if reason else "triton"
        repeats = options.repeats or default_repeats(device)
        return Case(inputs, device=device, backend=backend, repeats=repeats, dtype=dtype)

    return Session(patterns, map(make_case, make_inputs), rows, reason)
