"""The model families: one row says how to find the video tokens of a forward and its attention calls.

A model whose class has no row runs dense. To add one, write a row; nothing else changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..attention import reasons
from ..attention.layout import TokenLayout


@dataclass(frozen=True)
class ForwardInputs:
    """What APPLY_MODEL hands a model: x is the latent [B, C, T, H, W], context the text embedding
    [B, tokens, width], extra every further condition by name."""

    x: Any
    context: Any
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A row of the table.

    layout: the tokens of one forward, or the reason (a constant of `reasons`) why it must stay dense.
    calls: video self-attention calls that one forward makes.
    block: a block's number counted through all block types, from transformer_options.
    """

    name: str
    layout: Callable[[Any, ForwardInputs], TokenLayout | str]
    calls: Callable[[Any, ForwardInputs], int]
    block: Callable[[Any, Mapping[str, Any]], int | None]


def _ceil(size: int, patch: int) -> int:
    return -(-size // patch)


def _single_sequence_block(model, options):
    return options.get("block_index")


def _wan_grid(model, inputs: ForwardInputs) -> tuple[int, int, int]:
    # Wan pads the latent to whole patches.
    t, h, w = (_ceil(size, patch) for size, patch in zip(inputs.x.shape[2:], model.patch_size, strict=True))
    return t, h, w


def _wan_checked(layout: TokenLayout, inputs: ForwardInputs) -> TokenLayout | str:
    # Cross-attention is told from self-attention by its number of keys.
    if inputs.context is not None and inputs.context.shape[1] == layout.total:
        return reasons.AMBIGUOUS
    return layout


def _wan_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    """`[reference frame | video | in-context latents]`; time_dim_concat adds frames to the video."""
    t, h, w = _wan_grid(model, inputs)
    patch_t, patch_h, patch_w = model.patch_size
    frames = inputs.extra.get("time_dim_concat")
    if frames is not None:
        t += _ceil(frames.shape[2], patch_t)
    prefix = suffix = 0
    reference = inputs.extra.get("reference_latent")
    if model.ref_conv is not None and reference is not None:
        prefix = (reference.shape[-2] // patch_h) * (reference.shape[-1] // patch_w)
    for latent in inputs.extra.get("context_latents") or ():
        suffix += math.prod(map(_ceil, latent.shape[-3:], model.patch_size))
    return _wan_checked(TokenLayout((t, h, w), prefix, suffix), inputs)


def _vace_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    return _wan_checked(TokenLayout(_wan_grid(model, inputs)), inputs)


def _vace_calls(model, inputs: ForwardInputs) -> int:
    # Each VACE block runs once for every control video of the batch.
    return len(model.blocks) + len(model.vace_blocks) * inputs.extra["vace_context"].shape[1]


def _hunyuan_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    """`[vision | byT5 | text | reference | video]`; HunyuanVideo drops what does not fill a patch."""
    if len(model.patch_size) != 3:
        return reasons.IMAGE
    extra = inputs.extra
    t, h, w = (size // patch for size, patch in zip(inputs.x.shape[2:], model.patch_size, strict=True))
    prefix = inputs.context.shape[1]
    if model.byt5_in is not None and extra.get("txt_byt5") is not None:
        prefix += extra["txt_byt5"].shape[1]
    if extra.get("clip_fea") is not None:
        prefix += extra["clip_fea"].shape[1]
    if extra.get("ref_latent") is not None:
        prefix += math.prod(
            size // patch for size, patch in zip(extra["ref_latent"].shape[2:], model.patch_size, strict=True)
        )
    return TokenLayout((t, h, w), prefix)


def _hunyuan_block(model, options) -> int | None:
    index = options.get("block_index")
    if index is not None and options.get("block_type") == "single":
        return index + len(model.double_blocks)
    return index


FAMILIES: dict[str, Family] = {
    "comfy.ldm.wan.model.WanModel": Family(
        "Wan", _wan_layout, lambda model, inputs: len(model.blocks), _single_sequence_block
    ),
    "comfy.ldm.wan.model.VaceWanModel": Family("Wan VACE", _vace_layout, _vace_calls, _single_sequence_block),
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": Family(
        "HunyuanVideo",
        _hunyuan_layout,
        lambda model, inputs: len(model.double_blocks) + len(model.single_blocks),
        _hunyuan_block,
    ),
}


def family_of(model) -> Family | None:
    """The row of a diffusion model, or None. A subclass does not inherit its parent's row."""
    kind = type(model)
    return FAMILIES.get(f"{kind.__module__}.{kind.__qualname__}")
