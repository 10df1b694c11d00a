"""Trains the autoencoder on crops of the clips."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_accel.tests.train import clips
from dit_accel.tests.train.core import make_vae
from dit_accel.tests.train.loop import Training

# Side and length of the crops, and their share of the steps: small ones first, since many steps teach more than large
# ones. The network is causal and carries its state along: without long crops it drifts behind the frames it has seen.
FIRST_SHAPES = ((64, 9, 0.7), (64, 17, 0.3))
SHAPES = ((128, 9, 0.6), (96, 17, 0.2), (64, 33, 0.2))
FIRST = 0.42  # of all steps
LEARNING_RATE = 3e-4
# Weight of the Kullback-Leibler term per latent number: just enough to keep the latents near unit size.
KL = 1e-4


def train(folder: Path, device: torch.device, steps: int, deadline: float) -> bool:
    """One stretch of training, until `deadline` (time.monotonic); True when all `steps` are done.

    The clips must have been fetched into folder/clips.
    """
    vae = make_vae().to(device)
    fuse_norms(vae)
    training = Training(folder, "vae", dict(vae.named_parameters()), LEARNING_RATE)
    footage = [clips.read(folder / "clips", clip)[: clip.held_out] for clip in clips.CLIPS if clip.held_out]

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        shapes = FIRST_SHAPES if step < FIRST * steps else SHAPES
        shares = torch.tensor([share for *_, share in shapes])
        size, length, _ = shapes[int(torch.multinomial(shares, 1, generator=generator))]
        frames = crop(footage, size, length, generator).to(device)
        noise = torch.randn(1, 16, 1 + (length - 1) // 4, size // 8, size // 8, generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            mean, log_variance = encode(vae, frames)
            decoded = vae.decode(mean + noise * (0.5 * log_variance).exp())
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return F.l1_loss(decoded.float(), frames) + F.mse_loss(decoded.float(), frames) + KL * kl

    return training.run(steps, deadline, loss)


def encode(vae: nn.Module, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance, fp32 [B, 16, t, h, w]. ComfyUI's encode returns the mean alone."""
    kept = []
    hook = vae.conv1.register_forward_hook(lambda module, inputs, output: kept.append(output))
    vae.encode(frames)
    hook.remove()
    mean, log_variance = kept[0].float().chunk(2, dim=1)
    return mean, log_variance.clamp(-12, 4)


def crop(footage: list[Tensor], size: int, length: int, generator: torch.Generator) -> Tensor:
    """Part of a clip, fp32 [1, 3, length, size, size] in -1..1, of any place, scale and mirroring."""

    def pick(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    clip = footage[pick(len(footage))]
    side = size + pick(clips.HEIGHT - size + 1)
    start, top, left = pick(len(clip) - length + 1), pick(clips.HEIGHT - side + 1), pick(clips.WIDTH - side + 1)
    part = clip[start : start + length, :, top : top + side, left : left + side].float()
    part = F.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False) / 127.5 - 1
    if pick(2):
        part = part.flip(-1)
    return part.transpose(0, 1)[None]


def fuse_norms(vae: nn.Module) -> None:
    """Computes every norm and the SiLU behind it in one compiled pass: they take half of the time otherwise."""
    fused = torch.compile(_norm_silu, dynamic=True)

    def skip(x: Tensor) -> Tensor:
        return x

    for sequence in vae.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for norm, activation in zip(sequence, list(sequence)[1:], strict=False):
            if isinstance(activation, nn.SiLU):
                norm.forward = lambda x, norm=norm: fused(x.flatten(2), norm.gamma.flatten(1) * norm.scale).view_as(x)
                activation.forward = skip


def _norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    wide = x.float()
    normal = wide * (wide.square().sum(1, keepdim=True) + 1e-12).rsqrt()
    return F.silu(normal * gamma).to(x.dtype)
