"""Short runs of the tiny Wan, and what its results are compared by."""

from __future__ import annotations

import torch


def sample(model):
    import comfy.sample

    random = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 16, 3, 8, 10, generator=random)
    condition = [[torch.randn(1, 20, 4096, generator=random), {}]]
    return comfy.sample.sample(
        model, latent, 2, 1.0, "euler", "simple", condition, condition, torch.zeros_like(latent), seed=1
    )


def loaded(model, lora, strength=1.0):
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def distance(found, expected):
    """The norm of the difference as a part of the norm of what is expected."""
    return ((found - expected).norm() / expected.norm()).item()
