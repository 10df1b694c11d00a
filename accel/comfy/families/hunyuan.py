"""HunyuanVideo 1 and 1.5."""

from __future__ import annotations

import math

from ...attention import reasons
from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs


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


FAMILIES = {
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": Family(
        "HunyuanVideo",
        _hunyuan_layout,
        lambda model, inputs: len(model.double_blocks) + len(model.single_blocks),
        _hunyuan_block,
        "1 and 1.5, image to video, super-resolution, SkyReels; a text mask makes it run dense",
    ),
}
