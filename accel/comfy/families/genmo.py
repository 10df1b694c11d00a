"""Mochi."""

from __future__ import annotations

from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs


def _mochi_layout(model, inputs: ForwardInputs) -> TokenLayout:
    """`[video | text]` without the text's padding; a patch lies within one frame, and Mochi refuses part of one."""
    t, h, w = inputs.x.shape[2:]
    # num_tokens is summed over the text mask of the whole batch, so it can exceed the text's length.
    text = min(inputs.extra["num_tokens"], inputs.context.shape[1])
    return TokenLayout((t, h // model.patch_size, w // model.patch_size), suffix=text)


FAMILIES = {
    "comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint": Family(
        "Mochi",
        _mochi_layout,
        lambda model, inputs: len(model.blocks),
        unnumbered=True,
    ),
}
