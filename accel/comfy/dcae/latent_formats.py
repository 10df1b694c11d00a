"""Latent formats of the models that work in DC-AE latents: scale, channels, and preview factors if somebody fitted
some."""

from __future__ import annotations

from pathlib import Path

from comfy.latent_formats import LatentFormat

from ...dcae.config import Config
from ...dcae.preview import read_factors


def latent_format(config: Config, preview: Path | None = None) -> LatentFormat:
    """How ComfyUI scales, sizes and previews latents of this autoencoder.

    preview: a file of `dit-accel fit-preview`; without one there is no preview. Raises ValueError where the scale is
    not known, or the file is of another kind or autoencoder.
    """
    if config.scale is None:
        raise ValueError(f"DC-AE {config.name}: expected a known scale of its latents, found none")
    result = LatentFormat()
    result.scale_factor = config.scale
    result.latent_channels = config.latent_channels
    result.spacial_downscale_ratio = config.factor
    if preview is not None:
        result.latent_rgb_factors, result.latent_rgb_factors_bias = read_factors(preview, config)
    return result
