"""W4A4: a layer on comfy-kitchen's SVDQuant kernels, or on its eager ones where there is no GPU.

The engine quantises x / smooth to 4 bits in groups of 64, and adds the low rank from x as it is. Outputs of a GELU are
shifted by GELU_SHIFT and quantised without a sign; what the shift adds is taken off the bias (shift_bias).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .shared import Sibling, shared
from .weight4 import GELU_SHIFT, Weight4

HALF = (torch.float16, torch.bfloat16)
RANKS = 16  # the engine's low rank is a multiple of this


def svdquant_linear(
    x: Tensor,
    weight: Weight4,
    bias: Tensor | None,
    extra: Sequence[tuple[Tensor, Tensor]],
    shift: Tensor | None,
    sibling: Sibling | None,
) -> Tensor:
    """See linear.quantised_linear. Input that is not 16-bit is computed in the dtype of the weight's scales or bf16."""
    dtype = next(dtype for dtype in (x.dtype, weight.scale.dtype, torch.bfloat16) if dtype in HALF)
    split = weight.unsigned_from
    if split is not None:
        shift = weight.shift if shift is None else shift
        bias = -shift if bias is None else bias.float() - shift
    bias = None if bias is None else bias.to(dtype)
    if not split:
        out = _run(x, dtype, weight, bias, extra, sibling)
    else:
        # Signed and unsigned input channels are two layers, each with its part of the low rank.
        parts = [(slice(0, split), None, bias), (slice(split, None), 0, None)]
        outs = [
            _run(
                x[..., part],
                dtype,
                _columns(weight, part, unsigned_from),
                part_bias,
                [(down[part], up) for down, up in extra],
                None,
            )
            for part, unsigned_from, part_bias in parts
        ]
        out = outs[0].add_(outs[1])
    return out.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def _run(
    x: Tensor,
    dtype: torch.dtype,
    weight: Weight4,
    bias: Tensor | None,
    extra: Sequence[tuple[Tensor, Tensor]],
    sibling: Sibling | None,
) -> Tensor:
    """A layer whose input channels are all signed or all unsigned: [M, N] in `dtype`."""
    import comfy_kitchen

    rows = x.reshape(-1, x.shape[-1]).to(dtype).contiguous()
    unsigned = weight.unsigned_from is not None
    if weight.low_rank is None or not weight.rank:
        down, up = (rows.new_zeros(size, RANKS) for size in reversed(weight.shape))
    else:
        down, up = weight.low_rank

    def quantise() -> tuple[Tensor, Tensor, Tensor]:
        smooth = rows.new_ones(rows.shape[1]) if weight.smooth is None else weight.smooth.to(dtype)
        shifted = rows + GELU_SHIFT if unsigned else rows
        options = {"act_unsigned": unsigned, "lora_x": rows if unsigned else None}
        return comfy_kitchen.quantize_svdquant_w4a4(shifted, smooth, down.to(dtype).contiguous(), **options)

    codes, steps, low_rank = shared(x, sibling, quantise)
    up = up.to(dtype)
    if extra or up.shape[1] % RANKS:
        low_rank, up = _append(low_rank, up, rows, extra)
    out = comfy_kitchen.scaled_mm_svdquant_w4a4(
        codes,
        weight.codes,
        steps,
        weight.scale.to(dtype).contiguous(),
        low_rank,
        up.contiguous(),
        bias,
        act_unsigned=unsigned,
    )
    return out[: rows.shape[0]]


def _append(
    low_rank: Tensor, up: Tensor, rows: Tensor, extra: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The low-rank activations [M, R] and the up-projection [N, R] with those of `extra` behind them, filled up to a
    rank that the engine takes. What siblings share stays as it is."""
    for down, more_up in extra:
        more = (rows @ down.to(rows.dtype)).to(low_rank.dtype)
        more = F.pad(more, (0, 0, 0, low_rank.shape[0] - rows.shape[0]))
        low_rank, up = torch.cat([low_rank, more], dim=1), torch.cat([up, more_up.to(up.dtype)], dim=1)
    missing = -up.shape[1] % RANKS
    return F.pad(low_rank, (0, missing)), F.pad(up, (0, missing))


def _columns(weight: Weight4, part: slice, unsigned_from: int | None) -> Weight4:
    """The input channels `part` of a weight, whole groups of them."""
    first, stop, _ = part.indices(weight.shape[1])
    groups = slice(first // weight.group, stop // weight.group)
    return replace(
        weight,
        codes=weight.codes[:, first // 2 : stop // 2].contiguous(),
        scale=weight.scale[groups],
        smooth=None if weight.smooth is None else weight.smooth[part],
        proj_down=None if weight.proj_down is None else weight.proj_down[part],
        unsigned_from=unsigned_from,
    )
