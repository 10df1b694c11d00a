"""Wan 2.1 and 2.2 and what was built on them."""

from __future__ import annotations

import math

from ...attention import reasons
from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs, block_index, whole_patches


def _wan_grid(model, inputs: ForwardInputs) -> tuple[int, int, int]:
    # Wan pads the latent to whole patches.
    return whole_patches(inputs.x.shape[2:], model.patch_size)


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
        t += whole_patches(frames.shape[2:3], [patch_t])[0]
    prefix = suffix = 0
    reference = inputs.extra.get("reference_latent")
    if model.ref_conv is not None and reference is not None:
        prefix = (reference.shape[-2] // patch_h) * (reference.shape[-1] // patch_w)
    for latent in inputs.extra.get("context_latents") or ():
        suffix += math.prod(whole_patches(latent.shape[-3:], model.patch_size))
    return _wan_checked(TokenLayout((t, h, w), prefix, suffix), inputs)


def _vace_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    return _wan_checked(TokenLayout(_wan_grid(model, inputs)), inputs)


def _vace_calls(model, inputs: ForwardInputs) -> int:
    # Each VACE block runs once for every control video of the batch.
    return len(model.blocks) + len(model.vace_blocks) * inputs.extra["vace_context"].shape[1]


def _blocks(model, inputs: ForwardInputs) -> int:
    return len(model.blocks)


FAMILIES = {
    "comfy.ldm.wan.model.WanModel": Family("Wan", _wan_layout, _blocks, block_index),
    "comfy.ldm.wan.model.VaceWanModel": Family("Wan VACE", _vace_layout, _vace_calls, block_index),
}
