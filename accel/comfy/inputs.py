"""What nodes are given, as they need it."""

from __future__ import annotations

from collections.abc import Mapping


def latent_of(samples: Mapping):
    """The tensor [B, C, ...] of a LATENT, or ComfyUI's nested one of several streams. Raises ValueError, naming
    `samples`, where there is none."""
    latent = samples.get("samples") if isinstance(samples, Mapping) else None
    if latent is None:
        content = sorted(samples) if isinstance(samples, Mapping) else type(samples).__name__
        raise ValueError(f"samples: expected a latent, with a tensor under `samples`, found {content}")
    streams = latent.unbind() if latent.is_nested else [latent]
    if min(stream.ndim for stream in streams) < 2:
        raise ValueError(f"samples: expected a latent [B, C, ...], found {[list(each.shape) for each in streams]}")
    return latent


def need_model(model):
    """model, a ModelPatcher. Raises ValueError for what a loader gives that found no model in its file."""
    if not hasattr(model, "get_attachment"):
        raise ValueError(f"model: expected a diffusion model, found {type(model).__name__}")
    return model
