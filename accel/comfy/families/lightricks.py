"""LTX-Video."""

from __future__ import annotations

from collections.abc import Iterable

from ...attention import reasons
from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs, unlike_other_keys


def video_and_guides(latent: Iterable[int], inputs: ForwardInputs) -> TokenLayout | str:
    """`[video | guides]` of a latent of T, H, W, one token for each of its pixels.

    Guides (keyframes, references) are whole frames at its end: keyframe_idxs [B, 3, tokens, 2] has their tokens. With
    guides, tokens of negative noise mask [B, C, T, H, W] are left out: they pad references of lower resolution.
    """
    for guide in inputs.extra.get("guide_attention_entries") or ():
        # A guide that is to be attended more or less than the video becomes an attention mask.
        if guide["strength"] != 1.0 or guide.get("pixel_mask") is not None:
            return reasons.MASK
    t, h, w = latent
    suffix = 0
    guides = inputs.extra.get("keyframe_idxs")
    if guides is not None and guides.shape[2] > 0:
        t -= guides.shape[2] // (h * w)
        kept = (inputs.extra["denoise_mask"][0] >= 0).all(dim=0)
        if not kept[:t].all():
            return reasons.MASK  # what is left of the video is no raster
        suffix = int(kept[t:].sum())
    return unlike_other_keys(TokenLayout((t, h, w), suffix=suffix), inputs)


GUIDES = "with guides of another strength than 1, or with a mask, it runs dense"
FAMILIES = {
    "comfy.ldm.lightricks.model.LTXVModel": Family(
        "LTX-Video",
        lambda model, inputs: video_and_guides(inputs.x.shape[2:], inputs),
        lambda model, inputs: len(model.transformer_blocks),
        unnumbered=True,
        note=GUIDES,
    ),
}
