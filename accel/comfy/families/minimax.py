"""MiniMax H3."""

from __future__ import annotations

import math

from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs, whole_patches


def _h3_layout(model, inputs: ForwardInputs) -> TokenLayout:
    """`[text | keyframes and references | audio | video]`, audio in stereo: two tokens for each of its frames.

    The latent is a flat pack: latent_shapes has the video's [B, C, T, H, W], padded to whole patches, and the audio's
    [B, C, 2, T]. minimax_payload has the latents of keyframes and references, of the same dimensions.
    """
    video, audio = inputs.extra["latent_shapes"]
    payload = inputs.extra.get("minimax_payload") or {}
    prefix = inputs.context.shape[1] + math.prod(audio[2:])
    for latent in payload.get("cond_video_latents", ()):
        prefix += math.prod(whole_patches(latent.shape[2:], model.patch_size))
    for latent in payload.get("cond_audio_latents", ()):
        prefix += math.prod(latent.shape[2:])
    return TokenLayout(whole_patches(video[2:], model.patch_size), prefix)


FAMILIES = {
    "comfy.ldm.minimax.model.MiniMaxH3Model": Family(
        "MiniMax H3",
        _h3_layout,
        lambda model, inputs: len(model.blocks),
        note="text, audio, keyframes and references stay exact",
        unnumbered=True,  # newer cores do give them
    ),
}
