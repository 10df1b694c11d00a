"""Rough pictures from latents, for previews while a model samples: a linear map of each latent pixel, fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import read_json
from ..messages import short
from .config import Config

# The files of `dit-accel fit-preview`.
KIND, VERSION = "dit-accel/preview", 1
# Keeps the factors small where channels hardly differ: a part of the channels' mean variance.
RIDGE = 1e-4


class Fit(NamedTuple):
    """factors [C, 3] and bias [3], fp64: colours in -1..1 are latent @ factors + bias. r2: the part of the colours'
    variance that they explain, at most 1."""

    factors: Tensor
    bias: Tensor
    r2: float


def shrink(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture [3, H, W] as [3, height, width], each pixel the mean of its area."""
    return F.interpolate(picture[None], (height, width), mode="area")[0]


def fit(latents: Sequence[Tensor], pictures: Sequence[Tensor]) -> Fit:
    """The least-squares map, with a slight ridge, from latents [C, h, w] to the mean colours of their pictures.

    latents: as a diffusion model has them, so with the autoencoder's scale; pictures: [3, H, W] in -1..1, one for each
    latent. Raises ValueError where the latent pixels are too few to tell C + 1 unknowns, or all of one colour.
    """
    inputs = torch.cat([latent.flatten(1) for latent in latents], 1).T.double()
    colours = [shrink(picture.float(), *latent.shape[1:]) for latent, picture in zip(latents, pictures, strict=True)]
    outputs = torch.cat([colour.flatten(1) for colour in colours], 1).T.double()
    count, channels = inputs.shape
    if count <= channels:
        raise ValueError(f"pictures: expected more than {channels} latent pixels in all, found {count}")
    input_mean, output_mean = inputs.mean(0), outputs.mean(0)
    inputs, outputs = inputs - input_mean, outputs - output_mean
    variance = outputs.square().sum()
    if not variance:
        raise ValueError("pictures: expected more than one colour, found one")
    squares = inputs.T @ inputs
    squares.diagonal().add_(RIDGE * squares.diagonal().mean())
    factors = torch.linalg.solve(squares, inputs.T @ outputs)
    r2 = 1 - (outputs - inputs @ factors).square().sum() / variance
    return Fit(factors, output_mean - input_mean @ factors, r2.item())


def read_factors(path: Path, config: Config) -> tuple[list[list[float]], list[float]]:
    """The factors [C, 3] and the bias [3] of a file of `dit-accel fit-preview`. Raises ValueError naming the file, what
    was expected and what was found, when it is another file or of another autoencoder."""
    content = read_json(path, KIND, VERSION)
    name, factors, bias = (content.get(field) for field in ("autoencoder", "factors", "bias"))
    count = len(factors) if isinstance(factors, list) else 0
    if name != config.name or count != config.latent_channels:
        raise ValueError(
            f"{path}: expected factors for {config.latent_channels} channels of DC-AE {config.name}, found {count} of "
            f"{short(name)}"
        )
    for field, row in (("bias", bias), *(("factors", row) for row in factors)):
        if not isinstance(row, list) or len(row) != 3 or not all(map(_is_number, row)):
            raise ValueError(f"{path}: {field}: expected a number for each of 3 colours, found {short(row)}")
    # As floats: a whole number of a file may be larger than tensors take.
    return [[float(x) for x in row] for row in factors], [float(x) for x in bias]


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
