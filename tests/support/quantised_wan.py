"""A tiny Wan whose blocks are in 4 bits, and the plain model that it stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_accel.accel.quant.weight4 import INT4, Weight4, dequantise
from dit_accel.tests.support.svdquant import quantise, smoothing

LAYERS = (
    *(f"{kind}_attn.{layer}" for kind in ("self", "cross") for layer in "qkvo"),
    "ffn.0",
    "ffn.2",
)


def quantised(plain: dict[str, Tensor], grid: str = INT4) -> tuple[dict[str, Tensor | Weight4], dict[str, Tensor]]:
    """The state dict of a Wan with its blocks' layers as Weight4, and the plain fp32 one that it stands for. Layers
    that read the same input have the same smoothing; `ffn.2` reads a GELU."""
    generator = torch.Generator().manual_seed(5)
    packed, dense = dict(plain), dict(plain)
    smooths: dict[str, Tensor] = {}
    for key, weight in plain.items():
        block, _, layer = key.removesuffix(".weight").partition(".")[2].partition(".")
        if not key.startswith("blocks.") or not key.endswith(".weight") or layer not in LAYERS:
            continue
        source = f"{block}.{layer.replace('k', 'q').replace('v', 'q') if layer.startswith('self') else layer}"
        if source not in smooths:
            loudest = torch.randn(weight.shape[1], generator=generator).exp()
            smooths[source] = smoothing(weight.float(), loudest)
        packed[key] = quantise(weight.float(), smooths[source], grid=grid, unsigned=layer == "ffn.2")
        dense[key] = dequantise(packed[key])
    return packed, dense
