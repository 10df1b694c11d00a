"""Forwards through ComfyUI's own sampling, where a command or a test wants them without a whole run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def denoise_once(model, positive: list[Any], latent: Tensor, sigma: float, seed: int) -> Tensor:
    """One forward of a flow model at noise level sigma (0..1) on `latent` [1, C, T, H, W] as its autoencoder gave it,
    without guidance; the denoised latent."""
    import comfy.samplers

    return _sample(model, positive, latent, sigma, seed, comfy.samplers.ksampler("euler"))


def within_run(
    model,
    positive: list[Any],
    latent: Tensor,
    sigma: float,
    seed: int,
    work: Callable[[Callable[[], Tensor]], Result],
) -> Result:
    """What work(evaluate) returns inside a sampling run of a flow model, begun as `denoise_once` does.

    evaluate(): one more forward of the model on the same noised latent, as a sampler's next step asks for it, with
    all that nodes have put around it; the noise that it found, [1, C, T, H, W] fp32 on the model's device.
    """
    import comfy.samplers

    results = []

    def sampler(network, x, sigmas, extra_args, **options):
        level = sigmas[:1].expand(x.shape[0])
        results.append(work(lambda: x - network(x, level, **extra_args)))
        return x

    _sample(model, positive, latent, sigma, seed, comfy.samplers.KSAMPLER(sampler))
    return results[0]


def _sample(model, positive: list[Any], latent: Tensor, sigma: float, seed: int, sampler) -> Tensor:
    import comfy.sample

    noise = comfy.sample.prepare_noise(latent, seed)
    sigmas = torch.tensor([sigma, 0.0])
    return comfy.sample.sample_custom(
        model, noise, 1.0, sampler, sigmas, positive, positive, latent, disable_pbar=True, seed=seed
    )
