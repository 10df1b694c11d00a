"""CogVideoX 1 and 1.5."""

from __future__ import annotations

from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs, whole_patches


def _cogvideo_layout(model, inputs: ForwardInputs) -> TokenLayout:
    """`[text | video]`; the latent is padded to whole patches, which span several frames in 1.5 alone."""
    patch = (model.patch_size_t or 1, model.patch_size, model.patch_size)
    return TokenLayout(whole_patches(inputs.x.shape[2:], patch), prefix=inputs.context.shape[1])


FAMILIES = {
    "comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel": Family(
        "CogVideoX",
        _cogvideo_layout,
        lambda model, inputs: len(model.blocks),
        note="1 and 1.5",
    ),
}
