"""An image as a stream of strips of rows, and what a network does to it without ever holding the whole.

Every operation takes strips and gives strips, and keeps the few border rows that its kernel reaches over, so nothing is
computed twice and nothing is computed differently. A stream of one strip is the ordinary forward pass.

Streams are pulled, one strip at a time. A generator that waits must not keep its last strip alive, or a chain of them
holds as many strips as it has links: hence `map`, and `held.pop()` in a `yield`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Strips:
    """Consecutive strips of an image, top to bottom, each [B, C, h, W] with 0 < h <= rows; read once.

    height: rows of the whole image; rows: at most in a strip. Nothing says that strips are equally high: a convolution
    is behind its input by the rows that it has not seen yet, so its first strip is lower, and an end is added.
    """

    def __init__(self, tensors: Iterator[Any], height: int, rows: int) -> None:
        self.tensors = tensors
        self.height = height
        self.rows = rows

    @property
    def whole(self) -> bool:
        """Whether the one strip is the image."""
        return self.rows >= self.height

    def map(self, function: Callable[[Any], Any], grow: int = 1) -> Strips:
        """function of every strip; it makes `grow` rows of one."""
        return Strips(map(function, self.tensors), self.height * grow, self.rows * grow)


def cut(image: Tensor, rows: int | None) -> Strips:
    """An image [B, C, H, W] as strips of `rows` rows, or as one strip."""
    height = image.shape[2]
    rows = min(rows or height, height)
    return Strips(iter(image.split(rows, 2)), height, rows)


def over(strips: Strips, kernel: int, stride: int, function: Callable[[Tensor], Any], grow: int = 1) -> Strips:
    """function of every window of rows: it gets n * stride + kernel - stride rows and gives n * grow.

    An odd kernel's windows reach (kernel - 1) / 2 rows beyond the image, where they hold zeros; a kernel as high as its
    stride has no border. A single strip is handed over as it is, for the function to pad by itself.
    """
    source = strips.tensors if strips.whole or kernel == 1 else _windows(strips, kernel, stride)
    return Strips(map(function, source), strips.height * grow // stride, strips.rows * grow // stride)


def _windows(strips: Strips, kernel: int, stride: int) -> Iterator[Tensor]:
    border = (kernel - 1) // 2
    most = strips.rows // stride
    seen, buffer = 0, None
    for x in strips.tensors:
        seen += x.shape[2]
        parts = [_zeros(x, border) if buffer is None else buffer, x]
        if seen == strips.height:
            parts.append(_zeros(x, border))
        parts = [part for part in parts if part.shape[2]]
        buffer = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        del x, parts
        # Where the image ends, the rows that were missing come at once. A chain of convolutions would add them up.
        while (n := min(most, (buffer.shape[2] - kernel) // stride + 1)) > 0:
            held = [buffer.narrow(2, 0, (n - 1) * stride + kernel)]
            buffer = carried(buffer, n * stride)
            yield held.pop()


def _zeros(x: Tensor, rows: int) -> Tensor:
    return x.new_zeros(*x.shape[:2], rows, x.shape[3])


def carried(window: Tensor, start: int) -> Tensor:
    """The rows from `start` on, which the next window begins with; a copy, because a view keeps all rows alive."""
    return window[:, :, start:].clone()


def convolve(conv: nn.Conv2d, x: Tensor, whole: bool) -> Tensor:
    """conv(x) with its own padding on all sides, or, of a window that has its border rows, at its left and right."""
    own = conv.padding
    if whole or own[0] == 0:
        return conv(x)
    # The module itself must be called: ComfyUI's casts and streams its weights in there.
    conv.padding = (0, own[1])
    try:
        return conv(x)
    finally:
        conv.padding = own


def convolution(strips: Strips, conv: nn.Conv2d) -> Strips:
    """A convolution with odd kernel and "same" padding, of any stride that divides the height."""
    return over(strips, conv.kernel_size[0], conv.stride[0], lambda x: convolve(conv, x, strips.whole))


def in_pairs(strips: Strips) -> Strips:
    """The same rows in strips of even height."""
    return over(strips, 2, 2, _same, grow=2)


def _same(x: Tensor) -> Tensor:
    return x


def residual(
    strips: Strips,
    branch: Callable[[Strips], Strips],
    *,
    before: Callable[[Tensor], Tensor] = _same,
    after: Callable[[Tensor], Tensor] = _same,
    grow: int = 1,
) -> Strips:
    """branch(strips) + after(before(strips)), added in place of the branch's strips.

    What waits until the branch has caught up is before(x): the smaller side of a shortcut that changes the size.
    `after` makes `grow` rows of one.
    """
    waiting: deque[Tensor] = deque()

    def put(x: Tensor) -> Tensor:
        waiting.append(before(x))
        return x

    def add(y: Tensor) -> Tensor:
        done = 0
        while done < y.shape[2]:
            piece = waiting.popleft()
            n = min(piece.shape[2], (y.shape[2] - done) // grow)
            if n < piece.shape[2]:
                waiting.appendleft(piece[:, :, n:].clone())
                piece = piece[:, :, :n]
            y.narrow(2, done, n * grow).add_(after(piece))
            done += n * grow
        return y

    return branch(strips.map(put)).map(add)
