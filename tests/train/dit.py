"""Trains the transformer, and the prompts it is conditioned on, on the encoded clips."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dit_accel.tests.train.clips import PROMPTS
from dit_accel.tests.train.core import DIT, PROMPT_SCALE, make_dit
from dit_accel.tests.train.latents import BUCKETS, Bucket
from dit_accel.tests.train.loop import Training

LEARNING_RATE = 7e-4
PROMPT_TOKENS = 4
# Prompt number len(PROMPTS) is the empty one, which guidance needs.
EMPTY_SHARE = 0.1
# Noise levels are drawn with the shift that the demo samples with: at these sizes most of the work is at high noise.
SHIFT = 3.0

Latents = dict[str, dict[str, dict[str, Tensor]]]


def train(folder: Path, device: torch.device, steps: int, deadline: float) -> bool:
    """One stretch of training, until `deadline` (time.monotonic); True when all `steps` are done.

    Needs folder/latents.pt.
    """
    model = make_dit().to(device)
    prompts = make_prompts().to(device).requires_grad_()
    training = Training(folder, "dit", {**dict(model.named_parameters()), "prompts": prompts}, LEARNING_RATE)
    latents: Latents = torch.load(folder / "latents.pt")
    weights = torch.tensor([bucket.weight for bucket in BUCKETS])

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        bucket = BUCKETS[int(torch.multinomial(weights, 1, generator=generator))]
        clean, names = draw(latents[bucket.name], bucket, generator)
        sigma = shifted(torch.rand(len(clean), generator=generator))
        noise = torch.randn(clean.shape, generator=generator)
        empty = torch.rand(len(clean), generator=generator) < EMPTY_SHARE
        names[empty] = len(PROMPTS)
        clean, sigma, noise = clean.to(device), sigma.to(device), noise.to(device)
        return velocity_error(model, prompts[names.to(device)], clean, sigma, noise).mean()

    return training.run(steps, deadline, loss)


def make_prompts() -> Tensor:
    """The prompts before training, fp32 [len(PROMPTS) + 1, PROMPT_TOKENS, text width]."""
    generator = torch.Generator().manual_seed(0)
    return PROMPT_SCALE * torch.randn(len(PROMPTS) + 1, PROMPT_TOKENS, DIT["text_dim"], generator=generator)


def shifted(uniform: Tensor) -> Tensor:
    """Noise levels from numbers in 0..1, as ComfyUI's flow sampling shifts them."""
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


def velocity_error(model: nn.Module, context: Tensor, clean: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Squared error [B] of the predicted velocity noise - clean at noise level sigma [B] in 0..1 (rectified flow)."""
    level = sigma.view(-1, 1, 1, 1, 1)
    noisy = level * noise + (1 - level) * clean
    with torch.autocast(clean.device.type, torch.bfloat16):
        velocity = model(noisy, sigma * 1000, context)
    return (velocity.float() - (noise - clean)).square().mean(dim=(1, 2, 3, 4))


def draw(windows: dict[str, dict[str, Tensor]], bucket: Bucket, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch fp32 [B, 16, t, h, w] and its prompts' numbers [B]; every prompt is as likely as any other."""
    names = list(windows)
    chosen = torch.randint(len(names), (bucket.batch,), generator=generator).tolist()
    picked = []
    for index in chosen:
        candidates = windows[names[index]]["train"]
        picked.append(candidates[int(torch.randint(len(candidates), (), generator=generator))])
    return torch.stack(picked).float(), torch.tensor([PROMPTS.index(names[index]) for index in chosen])
