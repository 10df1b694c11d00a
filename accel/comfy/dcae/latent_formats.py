"""Latent formats of the models that work in DC-AE latents: scale, channels, and preview factors if somebody fitted
some."""

from __future__ import annotations

import json
from pathlib import Path

from comfy.latent_formats import LatentFormat

from ...dcae.config import Config
from ...dcae.preview import KIND, VERSION


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
        result.latent_rgb_factors, result.latent_rgb_factors_bias = _factors(preview, config)
    return result


def _factors(path: Path, config: Config) -> tuple[list[list[float]], list[float]]:
    content = json.loads(path.read_text("utf-8"))
    kind = content.get("format"), content.get("version")
    if kind != (KIND, VERSION):
        raise ValueError(f"{path}: expected version {VERSION} of {KIND}, found {kind}")
    if content["autoencoder"] != config.name or len(content["factors"]) != config.latent_channels:
        raise ValueError(
            f"{path}: expected factors for {config.latent_channels} channels of DC-AE {config.name}, found "
            f"{len(content['factors'])} of {content['autoencoder']}"
        )
    return content["factors"], content["bias"]
