"""Linear attention over strips: every token needs sums over all of them, so there are two passes over its input.

The first adds up the sums while the strips arrive, and keeps those; the second gives each strip its result and lets go
of it. Only the input is ever held whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...kernels import registry
from ...kernels.relu_linear_attention import apply_sums, kv_sums
from .layers import RMSNorm
from .streaming import Strips, convolve, over, residual


class _Scale(nn.Module):
    """Queries, keys and values gathered from around each token."""

    def __init__(self, channels: int, kernel: int, head_dim: int, operations, **factory) -> None:
        super().__init__()
        self.border = kernel // 2
        self.depthwise = operations.Conv2d(
            channels, channels, kernel, padding=self.border, groups=channels, bias=False, **factory
        )
        self.grouped = operations.Conv2d(channels, channels, 1, groups=channels // head_dim, bias=False, **factory)

    def forward(self, x: Tensor, whole: bool) -> Tensor:
        return self.grouped(convolve(self.depthwise, x, whole))


class LinearAttention(nn.Module):
    """x + norm(proj(heads)): heads of the tokens themselves and of each further scale (arXiv 2205.14756).

    Each consecutive 3 * head_dim channels of qkv, and of every scale's gathering of it, are a head's q, k and v.
    """

    def __init__(self, width: int, scales: tuple[int, ...], head_dim: int, operations, **factory) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.kernel = max((1, *scales))
        self.qkv = operations.Conv2d(width, 3 * width, 1, bias=False, **factory)
        self.scales = nn.ModuleList(_Scale(3 * width, kernel, head_dim, operations, **factory) for kernel in scales)
        self.proj = operations.Conv2d((1 + len(scales)) * width, width, 1, bias=False, **factory)
        self.norm = RMSNorm(width, **factory)

    def forward(self, strips: Strips) -> Strips:
        return Strips(self._twice(strips), strips.height, strips.rows)

    def _twice(self, strips: Strips) -> Iterator[Tensor]:
        kept: deque[Tensor] = deque()
        sums = heads = None

        def keep(x: Tensor) -> Tensor:
            kept.append(x)
            return x

        for heads in self._heads(strips.map(keep)).tensors:
            new = [kv_sums(qkv, head_dim=self.head_dim, backend=self._backend(qkv)) for qkv in heads]
            sums = new if sums is None else [old.add_(more) for old, more in zip(sums, new, strict=True)]
            if not strips.whole:
                heads = None
        # A single strip need not be computed again.
        again = [heads] if strips.whole else None
        del heads

        def branch(x: Strips) -> Strips:
            if again is None:
                return self._heads(x).map(lambda heads: self._attend(heads, sums))
            return x.map(lambda _: self._attend(again.pop(), sums))

        yield from residual(Strips(_let_go(kept), strips.height, strips.rows), branch).tensors

    def _heads(self, strips: Strips) -> Strips:
        """[B, C, h, W] -> a list of qkv [B, 3C, h, W], one for the tokens and one for each scale."""
        most = self.kernel // 2

        def gather(x: Tensor) -> list[Tensor]:
            if strips.whole:
                return [x, *(scale(x, True) for scale in self.scales)]
            return [_inner(x, most), *(scale(_inner(x, most - scale.border), False) for scale in self.scales)]

        return over(strips.map(self.qkv), self.kernel, 1, gather)

    def _attend(self, heads: list[Tensor], sums: list[Tensor]) -> Tensor:
        out = [
            apply_sums(qkv, total, head_dim=self.head_dim, backend=self._backend(qkv))
            for qkv, total in zip(heads, sums, strict=True)
        ]
        heads.clear()
        return self.norm(self.proj(torch.cat(out, 1)))

    def _backend(self, qkv: Tensor) -> str:
        name, _ = registry.choose("relu_linear_attention", device=qkv.device, dtype=qkv.dtype, head_dim=self.head_dim)
        return name or "reference"


def _inner(x: Tensor, border: int) -> Tensor:
    """x without `border` rows above and below."""
    return x.narrow(2, border, x.shape[2] - 2 * border)


def _let_go(kept: deque[Tensor]) -> Iterator[Tensor]:
    while kept:
        yield kept.popleft()
