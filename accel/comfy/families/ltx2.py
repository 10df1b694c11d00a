"""LTX-2."""

from __future__ import annotations

from ...attention import reasons
from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs
from .lightricks import GUIDES, video_and_guides


def _ltxav_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    """The video's own stream, `[video | guides]`; audio is another stream of one token for each of its frames.

    The latent is a flat pack of both: latent_shapes has the video's [B, C, T, H, W] and, where there is audio, its
    [B, C, T, F].
    """
    video, *audio = inputs.extra["latent_shapes"]
    layout = video_and_guides(video[2:], inputs)
    sound = sum(shape[2] for shape in audio)
    if inputs.extra.get("ref_audio") is not None:
        sound += inputs.extra["ref_audio"]["tokens"].shape[1]
    # The audio's self-attention and that between the streams are told from the video's by their length.
    if isinstance(layout, TokenLayout) and layout.total == sound:
        return reasons.AMBIGUOUS
    return layout


FAMILIES = {
    "comfy.ldm.lightricks.av_model.LTXAVModel": Family(
        "LTX-2",
        _ltxav_layout,
        lambda model, inputs: len(model.transformer_blocks),
        unnumbered=True,
        note=f"the video's stream; {GUIDES}",
    ),
}
