"""What the stages are made of, as operations on strips: norms, the residual block and the gated feed-forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import BATCH, RELU, Stage
from .streaming import Strips, convolution, residual

EPS = 1e-5
CHUNK = 2**24  # elements that a norm widens to fp32 at once


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """RELU or SILU, overwriting its input."""
    return F.relu_ if name == RELU else _silu_


def _silu_(x: Tensor) -> Tensor:
    return F.silu(x, inplace=True)


class _Norm(nn.Module):
    """A norm over channels, computed in fp32; overwrites and returns its input [B, C, h, W]."""

    def __init__(self, channels: int, **factory) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, **factory))
        self.bias = nn.Parameter(torch.zeros(channels, **factory))

    def forward(self, x: Tensor) -> Tensor:
        rows = max(1, CHUNK // (x.shape[0] * x.shape[1] * x.shape[3]))
        for part in x.split(rows, 2):
            wide = part.float()
            self._normalise(wide)
            if wide is not part:
                part.copy_(wide)
        return x


def _fp32(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.to(x.device, torch.float32)[:, None, None]


class RMSNorm(_Norm):
    """x / sqrt(mean of squares over channels + eps) * weight + bias."""

    def _normalise(self, x: Tensor) -> None:
        x.mul_(mean_square(x).add_(EPS).rsqrt_())
        torch.addcmul(_fp32(self.bias, x), x, _fp32(self.weight, x), out=x)


def mean_square(x: Tensor) -> Tensor:
    """Over channels: [B, C, h, W] -> [B, 1, h, W]."""
    return x.square().mean(1, keepdim=True)


class BatchNorm(_Norm):
    """Batch norm with the statistics it was trained with."""

    def __init__(self, channels: int, **factory) -> None:
        super().__init__(channels, **factory)
        self.register_buffer("running_mean", torch.zeros(channels, **factory))
        self.register_buffer("running_var", torch.ones(channels, **factory))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64, device=factory.get("device")))

    def _normalise(self, x: Tensor) -> None:
        scale = _fp32(self.weight, x) * (_fp32(self.running_var, x) + EPS).rsqrt()
        torch.addcmul(_fp32(self.bias, x) - _fp32(self.running_mean, x) * scale, x, scale, out=x)


class ResBlock(nn.Module):
    """x + norm(conv2(act(conv1(x))))"""

    def __init__(self, stage: Stage, operations, **factory) -> None:
        super().__init__()
        width = stage.width
        self.conv1 = operations.Conv2d(width, width, 3, padding=1, **factory)
        self.conv2 = operations.Conv2d(width, width, 3, padding=1, bias=False, **factory)
        self.norm = (BatchNorm if stage.norm == BATCH else RMSNorm)(width, **factory)
        self.act = activation(stage.act)

    def forward(self, strips: Strips) -> Strips:
        def branch(x: Strips) -> Strips:
            return convolution(convolution(x, self.conv1).map(self.act), self.conv2).map(self.norm)

        return residual(strips, branch)


class FeedForward(nn.Module):
    """x + norm(project(a * silu(g))), where a and g are the halves of depthwise(silu(expand(x)))."""

    def __init__(self, width: int, operations, **factory) -> None:
        super().__init__()
        inner = 4 * width
        self.expand = operations.Conv2d(width, 2 * inner, 1, **factory)
        self.depthwise = operations.Conv2d(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner, **factory)
        self.project = operations.Conv2d(inner, width, 1, bias=False, **factory)
        self.norm = RMSNorm(width, **factory)

    def forward(self, strips: Strips) -> Strips:
        def branch(x: Strips) -> Strips:
            wide = convolution(x.map(self.expand).map(_silu_), self.depthwise)
            return wide.map(_gated).map(self.project).map(self.norm)

        return residual(strips, branch)


def _gated(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, 1)
    return value.mul_(_silu_(gate))
