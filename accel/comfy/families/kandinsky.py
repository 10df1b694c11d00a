"""Kandinsky 5."""

from __future__ import annotations

from ...attention import reasons
from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs, unlike_other_keys, whole_patches


def _kandinsky_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    """The video alone, padded to whole patches; the image model has the same class and a latent without frames."""
    if inputs.x.ndim == 4:
        return reasons.IMAGE
    # The text blocks attend through the same override as well: over the text alone.
    return unlike_other_keys(TokenLayout(whole_patches(inputs.x.shape[2:], model.patch_size)), inputs)


FAMILIES = {
    "comfy.ldm.kandinsky5.model.Kandinsky5": Family(
        "Kandinsky 5",
        _kandinsky_layout,
        lambda model, inputs: len(model.visual_transformer_blocks),
        note="lite and pro; the image model runs dense",
    ),
}
