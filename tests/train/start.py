"""Where the autoencoder's training starts: as bicubic-like resizing, not as noise.

From random weights the network spends most of a short training on finding out that colours exist. Here its first three
channels carry red, green and blue through every layer: averaged on the way down, interpolated on the way up. All other
channels, and all residual branches, are free to learn what that loses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

COLOURS = 3
# The norm in front of each last convolution divides by the length of the channel vector. A constant channel this large
# keeps that length nearly constant, so that colours pass it as they are.
_ENCODER_CONSTANT = 8.0  # square root of its 64 channels
_DECODER_CONSTANT = 4.0  # of 16


def start_as_resizing(vae: nn.Module) -> None:
    """Sets the weights of a Wan 2.1 autoencoder in place; what is not mentioned here stays as it is."""
    for block in vae.modules():
        if type(block).__name__ == "ResidualBlock":
            # Every block starts as the identity, or as its shortcut.
            nn.init.zeros_(block.residual[-1].weight)
            if isinstance(block.shortcut, nn.Conv3d):
                _carry(block.shortcut.weight, (0, 0, 0))
        elif type(block).__name__ == "AttentionBlock":
            nn.init.zeros_(block.proj.weight)

    encoder, decoder = vae.encoder, vae.decoder
    _carry(encoder.conv1.weight, (2, 1, 1))
    for layer in (2, 5, 8):
        down = encoder.downsamples[layer]
        conv = down.resample[1]
        _carry(conv.weight, None)
        for channel in range(COLOURS):
            conv.weight.data[channel, channel, :2, :2] = 1 / 4
        if down.mode == "downsample3d":
            _carry(down.time_conv.weight, None)
            for channel in range(COLOURS):
                down.time_conv.weight.data[channel, channel, 1:] = 1 / 2
    _split_signs(encoder.downsamples[8].resample[1], 24, _ENCODER_CONSTANT)
    time_conv = encoder.downsamples[8].time_conv.weight.data
    time_conv.zero_()
    time_conv[range(64), range(64), 1:] = 1 / 2
    # The fourth latent channel: what the later frames have more of than the earlier ones.
    for channel, sign in ((3, 1), (27, -1)):
        time_conv[channel] = 0
        time_conv[channel, :COLOURS, 1], time_conv[channel, :COLOURS, 2] = -sign / COLOURS, sign / COLOURS
    _join_signs(encoder.head[2], 16, 24)
    _carry(vae.conv1.weight, (0, 0, 0), 16)
    _carry(vae.conv2.weight, (0, 0, 0), 16)
    # Latents start almost free of noise.
    vae.conv1.weight.data[16:] *= 0.1
    vae.conv1.bias.data[16:] = -5.0

    _carry(decoder.conv1.weight, (2, 1, 1), 16)
    bilinear = torch.tensor([1.0, 2.0, 1.0]) / 4
    for layer in (3, 7, 11):
        up = decoder.upsamples[layer]
        conv = up.resample[1]
        _carry(conv.weight, None)
        for channel in range(COLOURS):
            conv.weight.data[channel, channel] = bilinear[:, None] * bilinear
        if up.mode == "upsample3d":
            first, second = up.time_conv.weight.data.chunk(2)
            _carry(first, (2, 0, 0), 16)
            _carry(second, (2, 0, 0), 16)
            if layer == 3:
                first[:COLOURS, 3, 2], second[:COLOURS, 3, 2] = -1 / 2, 1 / 2
    _split_signs(decoder.upsamples[11].resample[1], 7, _DECODER_CONSTANT)
    decoder.head[2].weight.data.zero_()
    _join_signs(decoder.head[2], COLOURS, 7)


def _carry(weight: Tensor, tap: tuple[int, ...] | None, channels: int = COLOURS) -> None:
    """The first `channels` outputs become the first inputs, taken at `tap` of the kernel; nothing with None."""
    weight.data[:channels] = 0
    if tap is not None:
        for channel in range(channels):
            weight.data[(channel, channel, *tap)] = 1


def _split_signs(conv: nn.Module, channels: int, constant: float) -> None:
    """Outputs channels .. 2 * channels become the negatives of the first ones, the one behind them a constant."""
    conv.weight.data[channels : 2 * channels] = -conv.weight.data[:channels]
    conv.weight.data[2 * channels] = 0
    conv.bias.data[2 * channels] = constant


def _join_signs(conv: nn.Module, channels: int, distance: int) -> None:
    """silu(x) - silu(-x) = x: the linear way through the activation in front of `conv`."""
    conv.weight.data[:channels] = 0
    for channel in range(channels):
        conv.weight.data[channel, channel, 2, 1, 1] = 1
        conv.weight.data[channel, channel + distance, 2, 1, 1] = -1
