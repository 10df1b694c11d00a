"""torch's own products of 8-bit weights: what a user would pick instead of 4 bits.

A scale for every row of both sides, nothing smoothed. Weights are quantised beforehand, inputs within the call; what
stands around torch's product are the pack's kernels, which is to the peer's advantage: torch's own passes are slower.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dit_accel.accel.quant.compute import Card
from dit_accel.kernels import registry
from dit_accel.kernels.quantise import FP8, INT8
from dit_accel.kernels.rowwise import quantise_rows, scale_sums

TORCH_FP8, TORCH_INT8 = "torch fp8", "torch int8"
PEERS = {TORCH_FP8: FP8, TORCH_INT8: INT8}


def peer_problem(peer: str, card: Card) -> str:
    """Why torch has no such product on the card; empty where it has."""
    return card.scaled_mm if PEERS[peer] == FP8 else card.int_mm


def peer_linear(peer: str, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The layer x weightᵀ in 8 bits: takes x [M, K] in the dtype of `weight` [N, K], gives [M, N] in it, bf16 for
    `torch fp8`. On a GPU, N and K are multiples of 16 and M is above 16, as torch wants them."""
    backend = registry.choose("rowwise", device=weight.device, dtype=weight.dtype, head_dim=None)[0] or "reference"
    right, right_steps = quantise_rows(weight, None, PEERS[peer], backend=backend)

    def fp8(x: Tensor) -> Tensor:
        left, steps = quantise_rows(x, None, FP8, backend=backend)
        return torch._scaled_mm(left, right.T, steps[:, None], right_steps[None], out_dtype=torch.bfloat16)

    def int8(x: Tensor) -> Tensor:
        left, steps = quantise_rows(x, None, INT8, backend=backend)
        return scale_sums(torch._int_mm(left, right.T), steps, right_steps, None, weight.dtype, backend=backend)

    return fp8 if PEERS[peer] == FP8 else int8
