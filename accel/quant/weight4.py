"""The natural layout of a linear layer with 4-bit weights, into which every format is read.

SVDQuant (arXiv 2411.05007): W = R diag(1 / smooth) + proj_up proj_downᵀ, where R are the 4-bit weights. The smoothing
is folded out of the low-rank branch, which sees the layer's input as it is.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from ...kernels.unpack_w4 import E2M1, E2M1_VALUES, INT4, grid_values, unpack_nibbles, unpack_values, unpack_w4

__all__ = [
    "E2M1",
    "E2M1_VALUES",
    "GELU_SHIFT",
    "INT4",
    "Weight4",
    "dequantise",
    "grid_values",
    "pack_nibbles",
    "residual",
    "shift_bias",
    "unpack",
    "unpack_nibbles",
]
# What engines add to the input of an unsigned layer: the output of a GELU is never below minus this.
GELU_SHIFT = 0.171875


@dataclass(frozen=True)
class Weight4:
    """The weight of y = x Wᵀ for W [N, K], in groups of G input channels:
    W = (value(code) * scale + zero) * channel_scale / smooth + proj_up @ proj_down.T

    codes: int8 [N, K / 2]; the low nibble of a byte is the even column.
    scale: [K / G, N], 16-bit, fp32 or float8_e4m3fn.
    grid: INT4 (two's complement, -8..7) or E2M1 (a sign and 0, 0.5, 1, 1.5, 2, 3, 4, 6).
    zero: [K / G, N] or None. channel_scale: fp32 [N] or [1], or None for ones.
    smooth: [K] or None for ones. proj_down: [K, R] and proj_up: [N, R], or None of both.
    unsigned_from: the input channels from here on are outputs of a GELU, which W4A4 engines shift by GELU_SHIFT and
    quantise without a sign; None if there are none.
    known_shift: what `shift` would compute, where it is known already; dataclasses.replace forgets it.
    """

    codes: Tensor
    scale: Tensor
    grid: str = INT4
    zero: Tensor | None = None
    channel_scale: Tensor | None = None
    smooth: Tensor | None = None
    proj_down: Tensor | None = None
    proj_up: Tensor | None = None
    unsigned_from: int | None = None
    known_shift: InitVar[Tensor | None] = None

    def __post_init__(self, known_shift: Tensor | None) -> None:
        if known_shift is not None:
            object.__setattr__(self, "shift", known_shift)

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return self.codes.shape[0], 2 * self.codes.shape[1]

    @property
    def group(self) -> int:
        """Input channels that share a scale."""
        return self.shape[1] // self.scale.shape[0]

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """proj_down and proj_up, where there are any."""
        return None if self.proj_down is None or self.proj_up is None else (self.proj_down, self.proj_up)

    @property
    def rank(self) -> int:
        return 0 if self.proj_down is None else self.proj_down.shape[1]

    @cached_property
    def shift(self) -> Tensor:
        """shift_bias of this weight, computed once."""
        return shift_bias(self)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by field."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def pack_nibbles(codes: Tensor) -> Tensor:
    """Integers [..., K], of which the low four bits count, as int8 [..., K / 2], even columns in the low nibble."""
    codes = codes.to(torch.uint8) & 15
    return (codes[..., ::2] | codes[..., 1::2] << 4).view(torch.int8)


def unpack(weight: Weight4, dtype: torch.dtype, *, backend: str) -> Tensor:
    """The 4-bit part, W - proj_up proj_downᵀ: [N, K] in `dtype`."""
    return unpack_w4(
        weight.codes,
        weight.scale,
        grid=weight.grid,
        zero=weight.zero,
        channel_scale=weight.channel_scale,
        smooth=weight.smooth,
        dtype=dtype,
        backend=backend,
    )


def residual(weight: Weight4) -> Tensor:
    """The 4-bit part in the basis of the smoothed input, W - proj_up proj_downᵀ times smooth: fp32 [N, K]."""
    return unpack(replace(weight, smooth=None), torch.float32, backend="reference")


def dequantise(weight: Weight4) -> Tensor:
    """W of the plain linear layer: fp32 [N, K]."""
    dense = residual(weight)
    if weight.smooth is not None:
        dense = dense / weight.smooth.float()
    if weight.low_rank is not None:
        down, up = weight.low_rank
        dense = dense + up.float() @ down.float().T
    return dense


def shift_bias(weight: Weight4) -> Tensor:
    """What the shift of the unsigned input channels adds to the 4-bit part's output: fp32 [N]. An engine that shifts
    its input takes the plain bias minus this. Zeros where no input channel is unsigned."""
    if weight.unsigned_from is None:
        return torch.zeros(weight.shape[0], device=weight.codes.device)
    group, channels = weight.group, weight.shape[1]
    # Whole groups; the first one may have signed channels in front.
    first = weight.unsigned_from // group
    factors = torch.full((channels,), GELU_SHIFT, device=weight.codes.device)
    factors[: weight.unsigned_from] = 0
    if weight.smooth is not None:
        factors /= weight.smooth.float()
    factors = factors.view(-1, group)[first:]
    values = unpack_values(weight.codes[:, first * group // 2 :], weight.grid).unflatten(1, (-1, group))
    sums = torch.einsum("ngk,gk->gn", values, factors) * weight.scale[first:].float()
    if weight.zero is not None:
        sums += weight.zero[first:].float() * factors.sum(dim=1)[:, None]
    total = sums.sum(dim=0)
    return total if weight.channel_scale is None else total * weight.channel_scale
