"""Cosmos 1 and Cosmos Predict 2."""

from __future__ import annotations

from ...attention import reasons
from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs, unlike_other_keys, whole_patches


def _cosmos_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    """The video alone. Predict 2 pads the latent to whole patches, Cosmos 1 refuses part of one."""
    if inputs.x.shape[2] == 1:
        # Predict 2's text-to-image model has the class of its video models.
        return reasons.IMAGE
    patch = (model.patch_temporal, model.patch_spatial, model.patch_spatial)
    return unlike_other_keys(TokenLayout(whole_patches(inputs.x.shape[2:], patch)), inputs)


def _blocks(model, inputs: ForwardInputs) -> int:
    return len(model.blocks)


# Anima, an image model, is a subclass of MiniTrainDIT and has no row.
FAMILIES = {
    "comfy.ldm.cosmos.model.GeneralDIT": Family("Cosmos 1", _cosmos_layout, _blocks),
    "comfy.ldm.cosmos.predict2.MiniTrainDIT": Family("Cosmos Predict 2", _cosmos_layout, _blocks),
}
