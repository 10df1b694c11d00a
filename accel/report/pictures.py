"""Pictures made of frames."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw
from torch import Tensor

LABEL_WIDTH = 120
GAP = 4
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


def contact_sheet(rows: Mapping[str, Tensor], columns: int = 5) -> Image.Image:
    """One row per clip [T, 3, H, W] in 0..1, named at its left, with `columns` frames spread over the clip.

    The clips have one shape.
    """
    length, _, height, width = next(iter(rows.values())).shape
    chosen = torch.linspace(0, length - 1, min(columns, length)).round().long()
    size = (LABEL_WIDTH + len(chosen) * (width + GAP), GAP + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (label, clip) in enumerate(rows.items()):
        top = GAP + row * (height + GAP)
        draw.multiline_text((GAP, top + GAP), label, fill=_INK)
        for column, frame in enumerate(clip[chosen]):
            sheet.paste(to_image(frame), (LABEL_WIDTH + column * (width + GAP), top))
    return sheet


def to_image(frame: Tensor) -> Image.Image:
    """A frame [3, H, W] in 0..1 as a picture."""
    return Image.fromarray((frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture as ComfyUI's IMAGE: fp32 [1, H, W, 3] in 0..1."""
    return (
        torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        .reshape(1, picture.height, picture.width, 3)
        .float()
        .div_(255)
    )


def amplification(typical: float) -> int:
    """The power of two that makes a typical (root mean square) difference about a quarter of full scale; at least 1."""
    return max(1, int(2 ** math.floor(math.log2(0.25 / max(typical, 1e-6)))))


def difference(reference: Tensor, test: Tensor) -> tuple[Tensor, int]:
    """The absolute difference of two clips, amplified so that it can be seen, and the amplification."""
    gain = amplification((test - reference).square().mean().sqrt().item())
    return ((test - reference).abs() * gain).clamp(0, 1), gain
