"""Every operation once on small shapes, for a tool that watches memory: `python -m dit_accel.tests.bench small_calls`.

All patterns in all formats that the device has, with text around the video and heads of 64 and 128 channels; a linear
layer on all of its paths; the attention of an autoencoder. Results are thrown away: other tests compare them.
"""

import argparse

import torch

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.bench.case import Case
from dit_accel.accel.bench.inputs import Inputs
from dit_accel.accel.bench.pattern_row import Planner, formats_of
from dit_accel.accel.cli.needs import kernel_problem
from dit_accel.accel.quant.compute import card_of
from dit_accel.kernels.relu_linear_attention import apply_sums, kv_sums
from dit_accel.kernels.row_attention import row_attention
from dit_accel.tests.bench import linear

LAYOUT = TokenLayout((5, 9, 11), prefix=7, suffix=3)
HEADS = 2


def attention(device: str, backend: str, dim: int) -> None:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, LAYOUT.total, dim, generator=random) for _ in range(3))
    case = Case(Inputs(q, k, v, LAYOUT, "", ""), device=device, backend=backend, repeats=1)
    for pattern in PATTERNS:
        planner = Planner(case, pattern, Budget(top_p=0.6, floor=0.05, max_density=0.5))
        for plan in (planner.first(), planner.again()):
            for formats in (None, *formats_of(case.device)):
                executor.execute(case.q, case.k, case.v, plan, formats=formats, scale=case.scale, backend=backend)
    for rows in (1, 33, 64):
        row_attention(case.q[:, :, :rows], case.k, case.v, scale=case.scale, backend=backend)


def others(device: str, backend: str) -> None:
    layer = linear.drawn_layer(128, 256, 40, torch.device(device), repeats=1)
    for row in linear.rows_of(layer, linear.EVERY, card_of(device), lambda **fields: False):
        print(row["path"], row["remark"])
    qkv = torch.randn(1, 3 * HEADS * 32, 13, 17, device=device)
    apply_sums(qkv, kv_sums(qkv, head_dim=32, backend=backend), head_dim=32, backend=backend)


def run(options: argparse.Namespace) -> int:
    """Raises what an operation raises."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = "reference" if kernel_problem(torch.bfloat16, 128) else "triton"
    for dim in (64, 128):
        attention(device, backend, dim)
    others(device, backend)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"every operation ran on {device}, backend {backend}")
    return 0
