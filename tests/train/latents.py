"""Encodes the clips once, for the transformer's training, and settles the scale of the latents."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dit_accel.accel.writing import replacing
from dit_accel.tests.train import clips
from dit_accel.tests.train.core import latent_statistics, make_vae

# A silent channel must not be blown up to the size of the others.
MIN_STD = 0.25


class Bucket(NamedTuple):
    """A size to train at: windows of `frames` frames start at every `every`-th frame of a clip; `batch` of them make
    a step; `weight` is this bucket's share of the steps."""

    height: int
    width: int
    frames: int
    every: int
    batch: int
    weight: float

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"


# Several sizes, or the transformer learns the scenes by heart at those few and knows them at no other.
BUCKETS = (
    Bucket(112, 192, 33, every=6, batch=2, weight=0.3),
    Bucket(112, 192, 81, every=16, batch=1, weight=0.1),
    Bucket(128, 224, 33, every=12, batch=2, weight=0.15),
    Bucket(160, 272, 33, every=12, batch=1, weight=0.15),
    Bucket(192, 320, 33, every=12, batch=1, weight=0.2),
    Bucket(224, 384, 33, every=16, batch=1, weight=0.05),
    Bucket(288, 480, 33, every=24, batch=1, weight=0.05),
)


def scaled_vae(average: dict[str, Tensor], footage: list[Tensor]) -> dict[str, Tensor]:
    """The autoencoder's weights with its latents brought to the mean and deviation that ComfyUI assumes of Wan 2.1.

    average: the trained weights, fp32. footage: what to measure the latents on. The first convolution behind the
    encoder and the one before the decoder take up the change, so that nothing else need know.
    """
    vae = make_vae()
    vae.load_state_dict(average)
    latents = [encode(vae, frames[:, :, : clips.HEIGHT // 2, : clips.WIDTH // 2]) for frames in footage]
    numbers = torch.cat([latent.flatten(2)[0] for latent in latents], dim=1)
    mean, std = numbers.mean(1), numbers.std(1).clamp(min=MIN_STD)
    print("deviation by channel:", " ".join(f"{value:.2f}" for value in numbers.std(1)))
    known_mean, known_std = (x.flatten() for x in latent_statistics())
    scale = known_std / std
    shift = known_mean - mean * scale

    weights = {name: value.clone() for name, value in average.items()}
    channels = len(scale)
    weights["conv1.weight"][:channels] *= scale.view(-1, 1, 1, 1, 1)
    weights["conv1.bias"][:channels] = weights["conv1.bias"][:channels] * scale + shift
    weights["conv2.bias"] -= weights["conv2.weight"].flatten(1) @ (shift / scale)
    weights["conv2.weight"] /= scale.view(1, -1, 1, 1, 1)
    return weights


def encode(vae: nn.Module, frames: Tensor) -> Tensor:
    """uint8 [T, 3, H, W] -> fp32 [1, 16, 1 + (T - 1) // 4, H // 8, W // 8] on the CPU."""
    device = next(vae.parameters()).device
    pixels = frames.to(device).float().div(127.5).sub(1).transpose(0, 1)[None]
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        return vae.encode(pixels).float().cpu()


def write(folder: Path, device: torch.device, weights: dict[str, Tensor], deadline: float) -> bool:
    """Encodes into folder/latents.pt what is not there yet; True when all is, False when `deadline` (time.monotonic)
    came first.

    The file: bucket name -> prompt -> "train" and "held_out" windows fp16 [n, 16, t, h, w], in the scale that the
    transformer sees (mean 0, deviation 1).
    """
    path = folder / "latents.pt"
    vae = make_vae().to(device)
    vae.load_state_dict(weights)
    table: dict[str, dict[str, dict[str, Tensor]]] = torch.load(path) if path.exists() else {}
    for clip in clips.CLIPS:
        missing = [bucket for bucket in BUCKETS if clip.prompt not in table.get(bucket.name, {})]
        if clip.prompt is None or not missing:
            continue
        if time.monotonic() > deadline:
            return False
        for bucket in missing:
            found = _windows(vae, clips.read(folder / "clips", clip), clip.held_out, bucket)
            if "train" in found:
                table.setdefault(bucket.name, {})[clip.prompt] = found
                print(bucket.name, clip.prompt, {part: len(x) for part, x in found.items()}, flush=True)
        with replacing(path) as partial:
            torch.save(table, partial)
    return True


def _windows(vae: nn.Module, frames: Tensor, held_out: int, bucket: Bucket) -> dict[str, Tensor]:
    mean, std = latent_statistics()
    small = clips.resize(frames, bucket.height, bucket.width)
    found = {}
    for part, footage in {"train": small[:held_out], "held_out": small[held_out:]}.items():
        starts = range(0, len(footage) - bucket.frames + 1, bucket.every)
        windows = [encode(vae, footage[start : start + bucket.frames]) for start in starts]
        if windows:
            found[part] = ((torch.cat(windows) - mean) / std).half()
    return found
