"""Sampling the model that comes with the pack, inside this process. Needs ComfyUI on sys.path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dit_accel.accel.attention import executor
from dit_accel.accel.cli.demo_graph import SHIFT
from dit_accel.accel.comfy import conditioning_files
from dit_accel.accel.headless.loading import load_diffusion_model
from dit_accel.tests.bench.commands.capture import bundled


def load():
    """The bundled model with the noise schedule it was trained with."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    (model,) = ModelSamplingSD3().patch(load_diffusion_model(bundled("bunny")["model"]), SHIFT)
    return model


def sample(model, prompt: str, seed: int, size: tuple[int, int, int], steps: int) -> torch.Tensor:
    """A latent of (frames, height, width) pixels."""
    import comfy.sample

    frames, height, width = size
    latent = torch.zeros(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    noise = comfy.sample.prepare_noise(latent, seed)
    text = conditioning_files.load(bundled(prompt)["conditioning"])
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", text, text, latent, seed=seed, disable_pbar=True
    )


@contextmanager
def exact_errors() -> Iterator[list[float]]:
    """The relative L2 of every sparse call's output against dense attention, over all its rows."""
    errors, execute = [], executor.execute

    def measured(q, k, v, plan, *, scale, return_lse=False, **settings):
        found = execute(q, k, v, plan, scale=scale, return_lse=return_lse, **settings)
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        out = found[0] if return_lse else found
        errors.append(((out - dense).norm() / dense.norm()).item())
        return found

    executor.execute = measured
    try:
        yield errors
    finally:
        executor.execute = execute
