"""The autoencoder, built from its configuration: encode and decode, at once or strip by strip with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .config import EVIT, Config, Stage
from .layers import FeedForward, ResBlock, RMSNorm, activation
from .linear_attention import LinearAttention
from .resample import Down, Up, average, doubled, doubling, halved, halving, repeat
from .streaming import Strips, convolution, cut, residual

IMAGE = 3  # channels

Mark = Callable[[Strips], Strips]


class EViTBlock(nn.Module):
    """Linear attention, then the gated feed-forward. `mark` is put on the strips that the attention waits for."""

    def __init__(self, stage: Stage, head_dim: int, operations, **factory) -> None:
        super().__init__()
        self.attention = LinearAttention(stage.width, stage.scales, head_dim, operations, **factory)
        self.feed_forward = FeedForward(stage.width, operations, **factory)

    def forward(self, strips: Strips, mark: Mark) -> Strips:
        return self.feed_forward(self.attention(mark(strips)))


class _Stage(nn.Module):
    """Blocks of one resolution; beside them `down` or `up`."""

    def __init__(self, stage: Stage, head_dim: int, operations, **factory) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for _ in range(stage.depth):
            if stage.block == EVIT:
                self.blocks.append(EViTBlock(stage, head_dim, operations, **factory))
            else:
                self.blocks.append(ResBlock(stage, operations, **factory))

    def forward(self, strips: Strips, mark: Mark) -> Strips:
        for block in self.blocks:
            strips = block(strips, mark) if isinstance(block, EViTBlock) else block(strips)
        return strips


class Encoder(nn.Module):
    """Strips of an image [B, 3, H, W] -> strips of its latent [B, C, H / factor, W / factor]."""

    def __init__(self, config: Config, operations, **factory) -> None:
        super().__init__()
        self.config = config
        stages = config.encoder
        if stages[0].depth:
            self.conv_in = operations.Conv2d(IMAGE, stages[0].width, 3, padding=1, **factory)
        else:
            self.conv_in = halving(config.down, IMAGE, stages[1].width, operations, **factory)
        self.stages = nn.ModuleList(_Stage(stage, config.head_dim, operations, **factory) for stage in stages)
        for index in range(len(stages) - 1):
            if stages[index].depth:
                widths = stages[index].width, stages[index + 1].width
                self.stages[index].down = Down(config.down, *widths, operations, **factory)
        self.conv_out = operations.Conv2d(stages[-1].width, config.latent_channels, 3, padding=1, **factory)

    def forward(self, strips: Strips, mark: Mark) -> Strips:
        if self.config.encoder[0].depth:
            strips = convolution(strips, self.conv_in)
        else:
            strips = halved(strips, self.conv_in, self.config.down)
        for stage in self.stages:
            strips = stage(strips, mark)
            if hasattr(stage, "down"):
                strips = stage.down(strips)
        if not self.config.end_shortcuts:
            return convolution(strips, self.conv_out)
        channels = self.config.latent_channels
        return residual(strips, lambda x: convolution(x, self.conv_out), before=lambda x: average(x, channels))


class Decoder(nn.Module):
    """Strips of a latent [B, C, h, w] -> strips of its image [B, 3, h * factor, w * factor]."""

    def __init__(self, config: Config, operations, **factory) -> None:
        super().__init__()
        self.config = config
        stages = config.decoder
        self.conv_in = operations.Conv2d(config.latent_channels, stages[-1].width, 3, padding=1, **factory)
        self.stages = nn.ModuleList(_Stage(stage, config.head_dim, operations, **factory) for stage in stages)
        for index in range(len(stages) - 1):
            if stages[index].depth:
                widths = stages[index + 1].width, stages[index].width
                self.stages[index].up = Up(config.up, *widths, operations, **factory)
        outer = stages[0] if stages[0].depth else stages[1]
        self.norm_out = RMSNorm(outer.width, **factory)
        self.act = activation(config.final_act)
        if stages[0].depth:
            self.conv_out = operations.Conv2d(outer.width, IMAGE, 3, padding=1, **factory)
        else:
            self.conv_out = doubling(config.up, outer.width, IMAGE, operations, **factory)

    def forward(self, strips: Strips, mark: Mark) -> Strips:
        if self.config.end_shortcuts:
            width = self.config.decoder[-1].width
            strips = residual(strips, lambda x: convolution(x, self.conv_in), after=lambda x: repeat(x, width))
        else:
            strips = convolution(strips, self.conv_in)
        for stage in reversed(self.stages):
            if hasattr(stage, "up"):
                strips = stage.up(strips)
            strips = stage(strips, mark)
        strips = strips.map(self.norm_out).map(self.act)
        if self.config.decoder[0].depth:
            return convolution(strips, self.conv_out)
        return doubled(strips, self.conv_out, self.config.up)


class DCAE(nn.Module):
    """A deep compression autoencoder (arXiv 2410.10733; 1.5: arXiv 2508.00413).

    operations: a namespace with Conv2d, torch.nn or one of ComfyUI's. Every other parameter is cast where it is used,
    so the dtype of a result is that of the input, which the operations must take.
    """

    def __init__(self, config: Config, operations=nn, device=None, dtype=None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, operations, device=device, dtype=dtype)
        self.decoder = Decoder(config, operations, device=device, dtype=dtype)

    def encode(self, x: Tensor, rows: int | None = None, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Images [B, 3, H, W] in -1..1 -> unscaled latents [B, C, H / factor, W / factor].

        rows: latent rows in a strip; None: the whole image at once. progress(done, total) is called after every strip
        and may raise to end the computation. Raises ValueError for sides that the factor does not divide.
        """
        factor = self.config.factor
        height, width = x.shape[2:]
        if height % factor or width % factor:
            raise ValueError(f"expected sides that are multiples of {factor}, found {height} x {width}")
        shape = (x.shape[0], self.config.latent_channels, height // factor, width // factor)
        return _run(self.encoder, x, rows and rows * factor, shape, progress)

    def decode(self, z: Tensor, rows: int | None = None, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Unscaled latents [B, C, h, w] -> images [B, 3, h * factor, w * factor], about -1..1, not clamped.

        rows, progress: as in `encode`.
        """
        factor = self.config.factor
        shape = (z.shape[0], IMAGE, z.shape[2] * factor, z.shape[3] * factor)
        return _run(self.decoder, z, rows, shape, progress)


def barriers(stages: tuple[Stage, ...]) -> int:
    """Attention layers: each waits for all of its input."""
    return sum(stage.depth for stage in stages if stage.block == EVIT)


@torch.no_grad()
def _run(part: nn.Module, x: Tensor, rows: int | None, shape: tuple[int, ...], progress) -> Tensor:
    # Every barrier and the output count each row of the image or latent once, at the higher of the two resolutions.
    height = max(x.shape[2], shape[2])
    stages = part.config.encoder if isinstance(part, Encoder) else part.config.decoder
    total = (barriers(stages) + 1) * height
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    def marked(strips: Strips) -> Strips:
        return Strips(_counted(strips, height // strips.height, advance), strips.height, strips.rows)

    strips = marked(part(cut(x, rows), marked))
    if strips.whole:
        (out,) = strips.tensors
        return out
    out = x.new_empty(shape)
    start = 0
    for strip in strips.tensors:
        out.narrow(2, start, strip.shape[2]).copy_(strip)
        start += strip.shape[2]
        del strip
    return out


def _counted(strips: Strips, unit: int, advance: Callable[[int], None]) -> Iterator[Tensor]:
    for x in strips.tensors:
        count = x.shape[2] * unit
        held = [x]
        del x
        yield held.pop()
        advance(count)
