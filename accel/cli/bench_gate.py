"""`dit-accel bench gate`: fits the gate's cost model to this machine's GPU."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..comfy.folders import FOLDER, GATE
from ..headless.server import find_comfyui, missing_comfyui
from . import Problem
from .needs import kernel_problem, need_writable_file
from .table import table

if TYPE_CHECKING:
    from ..attention.cost.costs import Terms
    from ..bench.gate_fit import Timing

UNITS = {
    "dense": "ms a TFLOP, dense attention",
    "sparse_16bit": "ms a TFLOP, sparse attention in 16 bits",
    "sparse_8bit": "ms a TFLOP, sparse attention in 8 bits",
    "assign": "ms a TFLOP, k-means",
    "traffic": "ms a GB, memory",
    "calls": "ms a sparse call",
    "rounds": "ms a round of k-means",
}
HEADS = (40, 24, 12)
DENSITY = 0.3


def run(options: argparse.Namespace) -> int:
    """Prints what was measured and what follows, and writes the file. Raises Problem when something is missing."""
    if importlib.util.find_spec("torch") is None:
        raise Problem("torch is missing; ComfyUI's requirements bring it: pip install -r requirements.txt there")
    import torch

    from ..attention.cost.fits import Fit, software, write_fit
    from ..attention.cost.gate import card_at
    from ..bench.gate_fit import DIM, fit, measure

    dtype = torch.bfloat16
    reason = kernel_problem(dtype, DIM)
    if reason:
        raise Problem(f"the gate needs times of the fast kernel, and no kernel can run here: {reason}")
    here = card_at(torch.device("cuda", torch.cuda.current_device()))
    if here is None:
        raise Problem("the gate needs times of a GPU, and TRITON_INTERPRET is set: unset it")
    path = options.json or default_path(here.name)
    if options.json:
        need_writable_file("--json", path)
    versions = software()
    print(f"{here.name} ({here.architecture}); " + "; ".join(f"{name} {version}" for name, version in versions.items()))

    timings = measure("cuda", dtype, "triton", options.repeats)
    costs = fit(timings)
    write_fit(Fit(here.name, versions, costs, path), [timing.row(costs) for timing in timings])
    parts = show(timings, costs), show_costs(costs, here.architecture), show_break_even(costs), f"Wrote {path}"
    print("", *parts, sep="\n\n")
    return 0


def default_path(card: str) -> Path:
    """Where the node looks for it. Raises Problem without a ComfyUI."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise Problem(f"--json: expected a file to write to, because {missing_comfyui()}")
    return comfyui / "models" / FOLDER / GATE / (re.sub(r"\W+", "_", card) + ".json")


def show(timings: Sequence[Timing], costs: Terms) -> str:
    header = ("what", "tokens", "heads", "density", "bits", "measured ms", "fitted ms")
    rows = [timing.row(costs) for timing in timings]
    return table(
        header,
        [
            (
                row["what"],
                str(row["tokens"]),
                str(row["heads"]),
                f"{row['density']:.3f}",
                str(row["bits"]),
                f"{row['measured_ms']:.3f}",
                f"{row['fitted_ms']:.3f}",
            )
            for row in rows
        ],
    )


def show_costs(costs: Terms, architecture: str) -> str:
    """Beside the shipped costs of the chip, which nobody measured."""
    from ..attention.cost.costs import predicted_costs

    shipped = predicted_costs(architecture)._asdict()
    return table(
        ("cost", "fitted", "shipped"),
        [(UNITS[name], f"{value:.3f}", f"{shipped[name]:.3f}") for name, value in costs._asdict().items()],
    )


def show_break_even(costs: Terms) -> str:
    """Tokens from which on sparse attention wins, by pattern."""
    from ..attention.cost.costs import Size, break_even
    from ..attention.planners import PATTERNS
    from ..attention.planners.clusters import WARM_ITERATIONS
    from ..bench.gate_fit import DIM

    rows = []
    for name, pattern in PATTERNS.items():
        for bits in (16, 8):
            lengths = (
                break_even(costs, Size(heads, 0, 0, DIM), pattern.planning, DENSITY, bits, WARM_ITERATIONS)
                for heads in HEADS
            )
            rows.append((name, str(bits), *(f"{tokens:,}" if tokens else "never" for tokens in lengths)))
    title = f"Sparse attention wins from so many tokens on, at density {DENSITY} and head dimension {DIM}:"
    return f"{title}\n{table(('pattern', 'bits', *(f'{heads} heads' for heads in HEADS)), rows)}"
