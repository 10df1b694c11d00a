"""`dit-accel fit-preview`: what ComfyUI needs to preview latents of a DC-AE, from pictures of one's own. No model of
the pack reads the file yet."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_json
from . import Problem
from .needs import need_writable_file

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Longest side of a picture in pixels, and of the latent in its own: more pictures tell more than larger ones.
LONGEST, LONGEST_LATENT = 512, 8


def run(options: argparse.Namespace) -> int:
    """Writes options.output from the autoencoder options.vae and the pictures in options.pictures. Raises Problem where
    one of them cannot be used."""
    files = _files(options.pictures)
    need_writable_file("--output", options.output)

    import torch

    from ..dcae.checkpoint import read
    from ..dcae.network import DCAE
    from ..dcae.preview import KIND, VERSION, fit, shrink

    try:
        config, tensors = read(options.vae, options.variant)
    except (ValueError, OSError) as error:
        raise Problem(f"--vae: {error}") from error
    if config.scale is None:
        raise Problem(f"--vae: expected an autoencoder whose scale is known, found {config.name} without config.json")
    network = DCAE(config).eval()
    network.load_state_dict(tensors)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)

    latents, colours = [], []
    with torch.inference_mode():
        for picture in _pictures(files, config.factor):
            latent = network.encode(picture[None].to(device))[0].cpu() * config.scale
            latents.append(latent)
            colours.append(shrink(picture, *latent.shape[1:]))
    try:
        preview = fit(latents, colours)
    except ValueError as error:
        raise Problem(f"--{error}") from error
    content = {
        "autoencoder": config.name,
        "factors": preview.factors.tolist(),
        "bias": preview.bias.tolist(),
        "pictures": len(latents),
        "r2": preview.r2,
    }
    write_json(options.output, KIND, VERSION, content)
    print(f"{options.output}: {config.name}, {len(latents)} pictures, {preview.r2:.0%} of their variance")
    return 0


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise Problem(f"--pictures: expected a folder, found none at {folder}")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise Problem(f"--pictures: expected pictures ({', '.join(SUFFIXES)}) in {folder}, found none")
    return files


def _pictures(files: list[Path], factor: int) -> Iterator[Tensor]:
    """Pictures [3, H, W] in -1..1, made smaller and cut to multiples of `factor` around their middle."""
    import numpy
    import torch
    from PIL import Image, UnidentifiedImageError

    longest = max(LONGEST, LONGEST_LATENT * factor)
    for file in files:
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise Problem(f"--pictures: cannot read {file}: {error}") from error
        image.thumbnail((longest, longest))
        if min(image.size) < factor:
            raise Problem(f"--pictures: expected at least {factor} x {factor} pixels, found {file} of {image.size}")
        width, height = (size // factor * factor for size in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        pixels = numpy.asarray(image.crop((left, top, left + width, top + height)))
        yield torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
