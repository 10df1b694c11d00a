"""Tiny nunchaku checkpoints of random models, and the plain models that they stand for.

The models are built by ComfyUI, and ComfyUI's own tables for diffusers' files say which of its weights is which of
diffusers', whose names nunchaku's files follow. Importing this needs ComfyUI on sys.path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import comfy.ldm.flux.model
import comfy.ldm.lumina.model
import comfy.ldm.qwen_image.model
import comfy.model_detection
import comfy.ops
import comfy.utils
import torch
from torch import Tensor

from dit_accel.tests.support.svdquant import INT4, dequantise, pack_awq, pack_svdquant, quantise, smoothing

CPP, PYTHON = "cpp", "python"
PARTS = {"smooth_factor": "smooth", "smooth_factor_orig": "smooth_orig", "proj_down": "lora_down", "proj_up": "lora_up"}

# FLUX.2's and LyCORIS's names in ComfyUI's table of FLUX.
OTHER_NAMES = re.compile(r"\.linear_(in|out)\.|\.to_qkv_mlp_proj\.|^single_.*\.attn\.to_out\.")


@dataclass(frozen=True)
class Fused:
    """A layer of the file: its name in each engine's naming, and diffusers' layers that it is made of, outputs one
    after another. alike: of a layer that has the same smoothing."""

    cpp: str
    python: str
    of: tuple[str, ...]
    unsigned: bool = False
    chunks: int = 0
    alike: str = ""


@dataclass(frozen=True)
class Kind:
    """A model: ComfyUI's class and its settings, diffusers' table, what is fused in each list of blocks, metadata."""

    network: Callable[..., torch.nn.Module]
    settings: Mapping[str, Any]
    to_diffusers: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None
    blocks: Mapping[str, Sequence[Fused]]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """tensors, metadata: of the file. plain: ComfyUI's state dict of the model that the file stands for, fp32.
    network: makes ComfyUI's module for it."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    plain: dict[str, Tensor]
    network: Callable[[], torch.nn.Module] = field(repr=False)


FLUX_DOUBLE = (
    Fused("qkv_proj", "attn.to_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    Fused("qkv_proj_context", "attn.add_qkv_proj", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    Fused("out_proj", "attn.to_out.0", ("attn.to_out.0",)),
    Fused("out_proj_context", "attn.to_add_out", ("attn.to_add_out",)),
    Fused("mlp_fc1", "ff.net.0.proj", ("ff.net.0.proj",)),
    Fused("mlp_fc2", "ff.net.2", ("ff.net.2",), unsigned=True),
    Fused("mlp_context_fc1", "ff_context.net.0.proj", ("ff_context.net.0.proj",)),
    Fused("mlp_context_fc2", "ff_context.net.2", ("ff_context.net.2",), unsigned=True),
    Fused("norm1.linear", "norm1.linear", ("norm1.linear",), chunks=6),
    Fused("norm1_context.linear", "norm1_context.linear", ("norm1_context.linear",), chunks=6),
)
# `proj_out` is cut into what it does with the attention's output and with the MLP's before it is quantised.
FLUX_SINGLE = (
    Fused("qkv_proj", "attn.to_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    Fused("mlp_fc1", "mlp_fc1", ("proj_mlp",), alike="attn.to_qkv"),
    Fused("out_proj", "attn.to_out", ("proj_out.attention",)),
    Fused("mlp_fc2", "mlp_fc2", ("proj_out.mlp",), unsigned=True),
    Fused("norm.linear", "norm.linear", ("norm.linear",), chunks=3),
)
FLUX_NORMS = {f"attn.{norm}": norm for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")}
QWEN = (
    Fused("", "attn.to_qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    Fused("", "attn.add_qkv_proj", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    Fused("", "attn.to_out.0", ("attn.to_out.0",)),
    Fused("", "attn.to_add_out", ("attn.to_add_out",)),
    *(
        fused
        for stream in ("img", "txt")
        for fused in (
            Fused("", f"{stream}_mlp.net.0.proj", (f"{stream}_mlp.net.0.proj",)),
            Fused("", f"{stream}_mlp.net.2", (f"{stream}_mlp.net.2",), unsigned=True),
            Fused("", f"{stream}_mod.1", (f"{stream}_mod.1",), chunks=6),
        )
    ),
)
Z_IMAGE = (
    Fused("", "attention.to_qkv", ("attention.to_q", "attention.to_k", "attention.to_v")),
    Fused("", "attention.to_out.0", ("attention.to_out.0",)),
    Fused("", "feed_forward.net.0.proj", ("feed_forward.w3", "feed_forward.w1")),
    Fused("", "feed_forward.net.2", ("feed_forward.w2",)),
)


def _flux(width: int, axes: list[int]) -> Kind:
    settings = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "vec_in_dim": 768,
        "context_in_dim": 64,
        "hidden_size": width,
        "mlp_ratio": 4.0,
        "num_heads": width // sum(axes),
        "depth": 1,
        "depth_single_blocks": 2,
        "axes_dim": axes,
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
    }
    return Kind(
        comfy.ldm.flux.model.Flux,
        settings,
        comfy.utils.flux_to_diffusers,
        {"transformer_blocks": FLUX_DOUBLE, "single_transformer_blocks": FLUX_SINGLE},
        {
            "model_class": "NunchakuFluxTransformer2dModel",
            "comfy_config": {
                "model_class": "Flux",
                "model_config": {**settings, "disable_unet_model_creation": True},
            },
            "config": {"_class_name": "FluxTransformer2DModel", "num_layers": 1, "num_single_layers": 2},
        },
    )


def _qwen(layers: int, heads: int, text: int) -> Kind:
    return Kind(
        comfy.ldm.qwen_image.model.QwenImageTransformer2DModel,
        {
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": layers,
            "attention_head_dim": 128,
            "num_attention_heads": heads,
            "joint_attention_dim": text,
        },
        None,
        {"transformer_blocks": QWEN},
        {
            "model_class": "NunchakuQwenImageTransformer2DModel",
            "config": {"_class_name": "QwenImageTransformer2DModel", "zero_cond_t": False},
        },
    )


def _z_image(skip_refiners: bool, layers: int = 2, heads: int = 2, text: int = 64) -> Kind:
    lists = ("layers",) if skip_refiners else ("layers", "noise_refiner", "context_refiner")
    return Kind(
        comfy.ldm.lumina.model.NextDiT,
        {
            "patch_size": 2,
            "in_channels": 16,
            "dim": 128 * heads,
            "n_layers": layers,
            "n_refiner_layers": 2,
            "n_heads": heads,
            "n_kv_heads": heads,
            "ffn_dim_multiplier": 8 / 3,
            "qk_norm": True,
            "cap_feat_dim": text,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        comfy.utils.z_image_to_diffusers,
        dict.fromkeys(lists, Z_IMAGE),
        {
            "model_class": "NunchakuZImageTransformer2DModel",
            "config": {"_class_name": "ZImageTransformer2DModel", "dim": 128 * heads},
            "quantization_config": {"skip_refiners": skip_refiners},
        },
    )


KINDS = {
    "flux": _flux(256, [16, 56, 56]),
    # Neither 3 x 192 nor 192 is a whole number of tiles.
    "flux padded": _flux(192, [16, 24, 24]),
    "qwen image": _qwen(layers=2, heads=2, text=64),
    "z image": _z_image(skip_refiners=False),
    "z image, plain refiners": _z_image(skip_refiners=True),
    # The widths that ComfyUI's detection takes for granted.
    "qwen image 3072": _qwen(layers=1, heads=24, text=3584),
    "z image 3840": _z_image(skip_refiners=True, layers=1, heads=30, text=2560),
}


def checkpoint(name: str, grid: str = INT4, naming: str = CPP) -> Checkpoint:
    """The checkpoint of a kind. naming: of FLUX's layers and tensors; the other models have Python names only."""
    kind = KINDS[name]
    layers, others, plain = _quantised(name, grid)
    cpp = naming == CPP and "flux" in name
    tensors = dict(others)
    if cpp:
        tensors = {_cpp_norm(key): tensor for key, tensor in tensors.items()}
    for (block, fused), parts in layers.items():
        layer = f"{block}.{fused.cpp if cpp else fused.python}"
        # Copies: a file holds no tensor twice.
        tensors |= {f"{layer}.{PARTS.get(part, part) if cpp else part}": t.clone() for part, t in parts.items()}
    weight = {"dtype": "int4", "group_size": 64} if grid == INT4 else {"dtype": "fp4_e2m1_all", "group_size": 16}
    settings = {"method": "svdquant", "weight": weight, "rank": 16, **kind.metadata.get("quantization_config", {})}
    metadata = {**kind.metadata, "quantization_config": settings}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return Checkpoint(tensors, texts, dict(plain), lambda: network(kind))


# Of layers with one input, which are smoothed alike; and those that only compute shifts, scales and gates.
ONE_INPUT = re.compile(r"to_[qkv]$|proj_mlp$|add_[qkv]_proj$|w[13]$")
MODULATION = re.compile(r"norm1?(_context)?\.linear$|_mod\.1$")


def split_checkpoint(name: str, grid: str = INT4, alike: bool = True) -> Checkpoint:
    """The checkpoint of a kind as nunchaku_lite writes it: every layer of the blocks by itself, under diffusers' names.
    alike: q, k and v are smoothed alike."""
    kind = KINDS[name]
    generator = torch.Generator().manual_seed(1)
    dense = diffusers_state(name)
    tensors = {key: tensor.bfloat16() for key, tensor in dense.items()}
    smooths: dict[str, Tensor] = {}
    for key in [key for key in dense if key.startswith(tuple(kind.blocks)) and key.endswith(".weight")]:
        layer, weight = key.removesuffix(".weight"), dense[key]
        if weight.ndim != 2 or "adaLN" in layer:
            continue
        bias = dense.get(f"{layer}.bias")
        if MODULATION.search(layer):
            parts, weight, bias = pack_awq(weight, bias, 1)
        else:
            group = ONE_INPUT.sub("", layer) + ("context" if "add_" in layer else "") if alike else layer
            group = group.replace(".attn.", ".") if kind.settings.get("hidden_size") and "single" in layer else group
            if group not in smooths:
                smooths[group] = smoothing(weight, torch.randn(weight.shape[1], generator=generator).exp())
            packed = quantise(weight, smooths[group], grid=grid)
            parts, bias = pack_svdquant(packed, bias)
            weight = dequantise(packed)
        dense[key] = weight
        if bias is not None:
            dense[f"{layer}.bias"] = bias
        for end in ("weight", "bias"):
            tensors.pop(f"{layer}.{end}", None)
        tensors |= {f"{layer}.{part}": tensor.clone() for part, tensor in parts.items()}
    config = {**kind.metadata["config"], "quantization_config": {"quant_method": "nunchaku_lite"}}
    plain = dense if kind.to_diffusers is None else comfy.model_detection.convert_diffusers_mmdit(dense)
    return Checkpoint(tensors, {"config": json.dumps(config)}, dict(plain), lambda: network(kind))


def diffusers_state(name: str) -> dict[str, Tensor]:
    """A random model of a kind under diffusers' names, fp32."""
    kind = KINDS[name]
    generator = torch.Generator().manual_seed(0)
    state = {key: _random(key, tensor.shape, generator) for key, tensor in network(kind).state_dict().items()}
    return _as_diffusers(state, {} if kind.to_diffusers is None else kind.to_diffusers(kind.settings))


def forget() -> None:
    """Frees what checkpoints are kept as for the next time."""
    _quantised.cache_clear()


def network(kind: Kind) -> torch.nn.Module:
    """ComfyUI's module of a kind, fp32, its values not set."""
    operations = comfy.ops.disable_weight_init
    return kind.network(**kind.settings, dtype=torch.float32, device="cpu", operations=operations)


@cache
def _quantised(name: str, grid: str):
    """The 4-bit layers' tensors, all others under diffusers' names, and the plain model under ComfyUI's."""
    kind = KINDS[name]
    generator = torch.Generator().manual_seed(0)
    tensors = diffusers_state(name)
    _cut_flux_outputs(tensors, kind)
    layers, dense, smooths = {}, dict(tensors), {}
    for blocks, fusions in kind.blocks.items():
        for block in sorted({".".join(key.split(".")[:2]) for key in tensors if key.startswith(f"{blocks}.")}):
            for fused in fusions:
                parts, weight, bias = _quantise(tensors, block, fused, grid, smooths, generator)
                layers[block, fused] = parts
                for index, source in enumerate(fused.of):
                    dense[f"{block}.{source}.weight"] = weight.chunk(len(fused.of))[index]
                    if bias is not None:
                        dense[f"{block}.{source}.bias"] = bias.chunk(len(fused.of))[index]
    quantised = {f"{block}.{source}." for block, fused in layers for source in fused.of}
    others = {k: v.bfloat16() for k, v in tensors.items() if f"{k.rpartition('.')[0]}." not in quantised}
    if "z image" in name:
        _fuse_plain_feed_forward(others)
    _join_flux_outputs(dense, kind)
    plain = dense if kind.to_diffusers is None else comfy.model_detection.convert_diffusers_mmdit(dense)
    return layers, others, plain


def _random(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Values that bf16 holds, of a size that keeps activations near one. No gate is zero."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        noise *= shape[1] ** -0.5
    elif "norm" in key and key.endswith("weight"):
        noise = 1 + 0.1 * noise
    else:
        noise *= 0.1
    return noise.bfloat16().float()


def _as_diffusers(state: Mapping[str, Tensor], table: Mapping[str, Any]) -> dict[str, Tensor]:
    """ComfyUI's table read backwards; without one the names are the same."""
    if not table:
        return dict(state)
    result, used = {}, set()
    for theirs, ours in table.items():
        key, span, change = (ours, None, None) if isinstance(ours, str) else (*ours, None)[:3]
        if key in state and not OTHER_NAMES.search(theirs):
            tensor = state[key] if span is None else state[key].narrow(*span)
            # Swapping halves is its own inverse.
            result[theirs] = tensor if change is None else change(tensor)
            used.add(key)
    assert used == set(state), sorted(set(state) - used)
    return result


def _quantise(tensors, block: str, fused: Fused, grid: str, smooths: dict[str, Tensor], generator: torch.Generator):
    """The packed tensors of a layer, and the plain weight and bias that they stand for."""
    weight = torch.cat([tensors[f"{block}.{source}.weight"] for source in fused.of])
    biases = [tensors[f"{block}.{source}.bias"] for source in fused.of if f"{block}.{source}.bias" in tensors]
    bias = torch.cat(biases) if biases else None
    if fused.chunks:
        return pack_awq(weight, bias, fused.chunks)
    smooth = smooths.get(f"{block}.{fused.alike}")
    if smooth is None:
        smooth = smoothing(weight, torch.randn(weight.shape[1], generator=generator).exp())
    smooths[f"{block}.{fused.python}"] = smooth
    # As the exporter does: one outer scale, or one of every output where several layers are fused.
    packed = quantise(weight, smooth, grid=grid, unsigned=fused.unsigned, by_channel=len(fused.of) > 1)
    parts, bias = pack_svdquant(packed, bias)
    return parts, dequantise(packed), bias


def _cut_flux_outputs(tensors: dict[str, Tensor], kind: Kind) -> None:
    width = kind.settings.get("hidden_size")
    for key in [key for key in tensors if key.startswith("single") and key.endswith("proj_out.weight")]:
        layer = key.removesuffix(".weight")
        weight, bias = tensors.pop(key), tensors.pop(f"{layer}.bias")
        tensors[f"{layer}.attention.weight"], tensors[f"{layer}.mlp.weight"] = weight[:, :width], weight[:, width:]
        tensors[f"{layer}.attention.bias"], tensors[f"{layer}.mlp.bias"] = 0.25 * bias, 0.75 * bias


def _join_flux_outputs(tensors: dict[str, Tensor], kind: Kind) -> None:
    for key in [key for key in tensors if key.endswith("proj_out.mlp.weight")]:
        layer = key.removesuffix(".mlp.weight")
        parts = [[tensors.pop(f"{layer}.{part}.{end}") for part in ("attention", "mlp")] for end in ("weight", "bias")]
        tensors[f"{layer}.weight"], tensors[f"{layer}.bias"] = torch.cat(parts[0], dim=1), sum(parts[1])


def _fuse_plain_feed_forward(tensors: dict[str, Tensor]) -> None:
    """nunchaku's Z-Image has diffusers' SwiGLU in refiners that it leaves alone, too."""
    for key in [key for key in tensors if key.endswith("feed_forward.w1.weight")]:
        layer = key.removesuffix(".w1.weight")
        w1, w2, w3 = (tensors.pop(f"{layer}.w{number}.weight") for number in (1, 2, 3))
        tensors |= {f"{layer}.net.0.proj.weight": torch.cat((w3, w1)), f"{layer}.net.2.weight": w2}


def _cpp_norm(key: str) -> str:
    layer, _, end = key.rpartition(".")
    for python, cpp in FLUX_NORMS.items():
        layer = layer.removesuffix(python) + cpp if layer.endswith(python) else layer
    return f"{layer}.{end}"
