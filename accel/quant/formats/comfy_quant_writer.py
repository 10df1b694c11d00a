"""Writes 4-bit weights in ComfyUI's comfy_quant convention, always in natural order (comfy_quant.py reads it and
describes the formats). A layer gets the first format that can say all of it: svdquant_w4a4, awq_w4a16, and else this
pack's own dit_accel_w4, which is for NVFP4 grids, channel scales, GELU outputs on part of the input, and layers
without smoothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..weight4 import INT4, Weight4
from .checks import FLOATS
from .comfy_quant import AWQ, NATURAL, OURS, RAW, SVDQUANT, from_unsigned, plain_bias
from .comfy_quant_markers import MARKER, Config, header, marker, read_markers


def tensors_of(tensors: Mapping[str, Tensor | Weight4]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, contiguous and none twice in memory, and its header metadata.

    tensors: by ComfyUI's names, `<layer>.weight` a Weight4 for 4-bit layers and `<layer>.bias` its plain bias. What is
    read from the result is the same again, value by value, but for one dtype: the plain bias of a svdquant_w4a4 layer
    with unsigned input comes back in fp32.
    """
    written: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not isinstance(value, Weight4):
            written.setdefault(key, value)
            continue
        layer = key.removesuffix(".weight")
        bias = bias_of(tensors, layer)
        kind = format_of(value, bias)
        parts, config = layer_parts(value, kind)
        written |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
        written[layer + MARKER] = marker(config)
        if kind == SVDQUANT and value.unsigned_from is not None and bias is not None:
            written[f"{layer}.bias"] = shifted_bias(bias, value)
    # Layers of core's formats came with their markers.
    return _apart(written), header(read_markers(written, "the model"))


def bias_of(tensors: Mapping[str, Tensor | Weight4], layer: str) -> Tensor | None:
    """The plain bias of a layer, where it has one."""
    bias = tensors.get(f"{layer}.bias")
    return bias if isinstance(bias, Tensor) else None


def format_of(weight: Weight4, bias: Tensor | None) -> str:
    """The format that a layer is written in: SVDQUANT, AWQ or OURS."""
    if weight.grid != INT4 or weight.channel_scale is not None or weight.scale.dtype not in FLOATS:
        return OURS
    if weight.zero is not None:
        bare = weight.smooth is None and weight.proj_down is None and weight.unsigned_from is None
        return AWQ if bare else OURS
    # A layer without a bias has no place for what makes up for the shift.
    shiftable = weight.unsigned_from is None or (weight.unsigned_from == 0 and bias is not None)
    return SVDQUANT if weight.group == 64 and weight.smooth is not None and shiftable else OURS


def layer_parts(weight: Weight4, kind: str) -> tuple[dict[str, Tensor], Config]:
    """A layer's tensors by their name in the layer, without its bias, and its JSON, in the format `kind`."""
    return _WRITERS[kind](weight)


def _svdquant(weight: Weight4) -> tuple[dict[str, Tensor], Config]:
    like = weight.scale if weight.smooth is None else weight.smooth
    empty = {
        "weight_proj_down": like.new_empty(weight.shape[1], 0),
        "weight_proj_up": like.new_empty(weight.shape[0], 0),
    }
    return empty | _parts(weight), {
        "format": SVDQUANT,
        "group_size": weight.group,
        "rank": weight.rank,
        "act_unsigned": weight.unsigned_from is not None,
        "layout": NATURAL,
        "lowrank_branch_input_basis": RAW,
        "orig_shape": list(weight.shape),
    }


def _awq(weight: Weight4) -> tuple[dict[str, Tensor], Config]:
    parts = _parts(weight) | {"weight": from_unsigned(weight.codes)}
    return parts, {"format": AWQ, "group_size": weight.group, "orig_shape": list(weight.shape)}


def _ours(weight: Weight4) -> tuple[dict[str, Tensor], Config]:
    return _parts(weight), {
        "format": OURS,
        "grid": weight.grid,
        "group_size": weight.group,
        "rank": weight.rank,
        "unsigned_from": weight.unsigned_from,
        "layout": NATURAL,
        "lowrank_branch_input_basis": RAW,
        "orig_shape": list(weight.shape),
    }


_WRITERS = {SVDQUANT: _svdquant, AWQ: _awq, OURS: _ours}
_NAMES = {
    "codes": "weight",
    "scale": "weight_scale",
    "zero": "weight_zeros",
    "channel_scale": "weight_channel_scale",
    "smooth": "weight_smooth_factor",
    "proj_down": "weight_proj_down",
    "proj_up": "weight_proj_up",
}


def _parts(weight: Weight4) -> dict[str, Tensor]:
    return {_NAMES[field]: tensor for field, tensor in weight.tensors().items()}


def shifted_bias(bias: Tensor, weight: Weight4) -> Tensor:
    """The bias as an engine takes it that shifts its input: of the scale's dtype, as other programs write it, where
    that gives the plain one back, and else fp64."""
    shifted = bias.double() - weight.shift.double()
    narrow = shifted.to(weight.scale.dtype)
    return narrow if torch.equal(plain_bias(narrow, weight), bias.float()) else shifted


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and a copy of what is there under two names: safetensors refuses to write memory twice."""
    seen = set()
    apart = {}
    for key, tensor in tensors.items():
        tensor = tensor.contiguous()
        place = tensor.data_ptr()
        apart[key] = tensor.clone() if place in seen and tensor.numel() else tensor
        seen.add(place)
    return apart
