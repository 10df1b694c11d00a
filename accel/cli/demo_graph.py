"""The demo's graph in ComfyUI's API format, and the mapping between frames and its latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Latent channels are pixels: a block of 4 x 4 pixels with 3 colours gives 48. ComfyUI then standardises the
# channels with Wan 2.2's statistics, whose standard deviations lie around one half.
FOLD = 4
SPREAD = 0.5
NOISE_SEED = 7
DENOISE = 0.12


def to_latent(frames: Tensor) -> Tensor:
    """Frames fp32 [T, 3, H, W] in 0..1 as a latent [1, 48, T, H/4, W/4]; H and W are multiples of 4."""
    folded = torch.nn.functional.pixel_unshuffle(frames * 2 - 1, FOLD)
    return (folded * SPREAD).transpose(0, 1)[None].contiguous()


def to_frames(latent: Tensor) -> Tensor:
    """Inverse of `to_latent`, clamped to 0..1."""
    folded = latent[0].transpose(0, 1) / SPREAD
    return ((torch.nn.functional.pixel_shuffle(folded, FOLD) + 1) / 2).clamp(0, 1)


def graph(
    checkpoint: str, latent: str, prefix: str, *, steps: int, sparse: dict[str, Any] | None, seed: int = NOISE_SEED
) -> dict[str, Any]:
    """Load model and latent, sample, save the latent under `prefix`.

    sparse: the inputs of DitAccelBudget and the fallback of DitAccelSparseAttention, or None for the graph
    without our nodes.
    """
    nodes = {
        "model": _node("UNETLoader", unet_name=checkpoint, weight_dtype="default"),
        # Without a shift the end of the schedule has little noise: the picture stays recognisable.
        "schedule": _node("ModelSamplingSD3", model=["model", 0], shift=1.0),
        "text": _node("LotusConditioning"),
        "frames": _node("LoadLatent", latent=latent),
        "sample": _node(
            "KSampler",
            model=["schedule", 0],
            seed=seed,
            steps=steps,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            positive=["text", 0],
            negative=["text", 0],
            latent_image=["frames", 0],
            denoise=DENOISE,
        ),
        "save": _node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
    }
    if sparse is not None:
        nodes["budget"] = _node("DitAccelBudget", **sparse["budget"])
        nodes["sparse"] = _node(
            "DitAccelSparseAttention",
            model=["schedule", 0],
            pattern="svg2",
            precision="auto",
            token_order="auto",
            guard="on",
            fallback=sparse["fallback"],
            budget=["budget", 0],
        )
        nodes["sample"]["inputs"]["model"] = ["sparse", 0]
    return nodes


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
