"""The arithmetic of a linear layer with 4-bit weights, one function for each way of computing it (compute.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import registry
from ...kernels.quantise import FP8, INT8
from ...kernels.rowwise import quantise_rows, scale_sums
from . import compute
from .engine import svdquant_linear
from .shared import Sibling, shared
from .weight4 import Weight4, unpack

Pair = tuple[Tensor, Tensor]  # a down-projection [K, r] and an up-projection [N, r]
ROWS = 8192  # multiplied at once where the product is int32, to bound what it takes
ALIGNED = {INT8: 8, FP8: 16}  # output channels must be a multiple of this
FEW_ROWS = 32  # what torch._int_mm takes on a GPU at least (it wants more than 16)


def quantised_linear(
    x: Tensor,
    weight: Weight4,
    bias: Tensor | None,
    path: str,
    extra: Sequence[Pair] = (),
    *,
    shift: Tensor | None = None,
    sibling: Sibling | None = None,
) -> Tensor:
    """x Wᵀ + bias, plus x down upᵀ for every pair of `extra` (LoRA): [..., N] in x's dtype.

    x: [..., K], fp16, bf16 or fp32; bias: the plain one [N] (without an engine's GELU shift) or None; path: of
    compute.choose. shift: weight4.shift_bias(weight), made once by the caller, which W4A4 of a layer with unsigned
    input channels needs. sibling: of shared.siblings for this path, where layers share their quantised input.
    """
    if not x.numel():  # comfy-kitchen refuses it
        return x.new_empty(*x.shape[:-1], weight.shape[0])
    if path == compute.W4A4:
        return svdquant_linear(x, weight, bias, extra, shift, sibling)
    if path == compute.W4A16:
        return F.linear(x, dense_weight(weight, extra, x.dtype), None if bias is None else bias.to(x.dtype))
    return _eight_bits(x, weight, bias, extra, INT8 if path == compute.INT8 else FP8, sibling)


def dense_weight(weight: Weight4, extra: Sequence[Pair], dtype: torch.dtype) -> Tensor:
    """W with everything of low rank added: [N, K] in `dtype`. The 4-bit part and the sum are rounded to it."""
    dense = _unpack(weight, dtype)
    return _add_low_rank(dense, weight, extra)


def _eight_bits(
    x: Tensor, weight: Weight4, bias: Tensor | None, extra: Sequence[Pair], codes: torch.dtype, sibling: Sibling | None
) -> Tensor:
    """W8A8: both sides quantised by rows in the basis of the smoothed input, the weight anew in every call, so that
    only its 4 bits stay in memory."""
    backend = _backend("rowwise", x, x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    smooth = weight.smooth
    left, left_steps = shared(x, sibling, lambda: quantise_rows(rows, smooth, codes, backend=backend))
    dense = _unpack(replace(weight, smooth=None), x.dtype)
    right, right_steps = quantise_rows(_add_low_rank(dense, weight, extra, smooth), None, codes, backend=backend)
    missing = -right.shape[0] % ALIGNED[codes]
    if missing:
        # Padded as bytes: torch pads no FP8.
        right = F.pad(right.view(torch.uint8), (0, 0, 0, missing)).view(codes)
        right_steps = F.pad(right_steps, (0, missing))
        bias = None if bias is None else F.pad(bias, (0, missing))
    product = _int8_product if codes == INT8 else _fp8_product
    out = product(left, left_steps, right, right_steps, bias, x.dtype)
    return out[:, : weight.shape[0]].reshape(*x.shape[:-1], weight.shape[0])


def _int8_product(
    left: Tensor, left_steps: Tensor, right: Tensor, right_steps: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    backend = _backend("rowwise", left, dtype)
    parts = []
    for codes, steps in zip(left.split(ROWS), left_steps.split(ROWS), strict=True):
        missing = max(0, FEW_ROWS - codes.shape[0])
        sums = torch._int_mm(F.pad(codes, (0, 0, 0, missing)), right.T)[: codes.shape[0]]
        parts.append(scale_sums(sums, steps, right_steps, bias, dtype, backend=backend))
    return torch.cat(parts)


def _fp8_product(
    left: Tensor, left_steps: Tensor, right: Tensor, right_steps: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if left.device.type == "cpu":  # torch has row scales on GPUs only
        out = left.float() @ right.float().T * left_steps[:, None] * right_steps
        return (out if bias is None else out + bias).to(dtype)
    bias = None if bias is None else bias.bfloat16()
    steps = left_steps[:, None], right_steps[None, :]
    return torch._scaled_mm(left, right.T, *steps, bias=bias, out_dtype=torch.bfloat16).to(dtype)


def _add_low_rank(dense: Tensor, weight: Weight4, extra: Sequence[Pair], smooth: Tensor | None = None) -> Tensor:
    pairs = [*([] if weight.low_rank is None else [weight.low_rank]), *extra]
    if pairs:
        down, up = (torch.cat([part.to(dense.dtype) for part in parts], dim=1) for parts in zip(*pairs, strict=True))
        if smooth is not None:
            down = down * smooth.to(dense.dtype)[:, None]
        dense.addmm_(up, down.T)
    return dense


def _unpack(weight: Weight4, dtype: torch.dtype) -> Tensor:
    return unpack(weight, dtype, backend=_backend("unpack_w4", weight.codes, dtype))


def _backend(operation: str, x: Tensor, dtype: torch.dtype) -> str:
    return _chosen(operation, x.device, dtype)


# torch.compile cannot trace the search for Triton, whose result never changes.
@torch.compiler.assume_constant_result
def _chosen(operation: str, device: torch.device, dtype: torch.dtype) -> str:
    # Without Triton the reference is the way to go: nothing else gives the model's own result.
    return registry.choose(operation, device=device, dtype=dtype, head_dim=None)[0] or "reference"
