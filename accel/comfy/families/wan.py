"""Wan 2.1 and 2.2 and what was built on them."""

from __future__ import annotations

import math

from ...attention import reasons
from ...attention.layout import TokenLayout
from .family import Family, ForwardInputs, unlike_other_keys, whole_patches


def _grid(model, inputs: ForwardInputs) -> tuple[int, int, int]:
    """Wan pads the latent to whole patches; time_dim_concat adds frames behind it."""
    t, h, w = whole_patches(inputs.x.shape[2:], model.patch_size)
    frames = inputs.extra.get("time_dim_concat")
    if frames is not None:
        t += whole_patches(frames.shape[2:3], model.patch_size[:1])[0]
    return t, h, w


def _unlike_other_keys(layout: TokenLayout, inputs: ForwardInputs) -> TokenLayout | str:
    """As unlike_other_keys, with the vision tokens of all images, which are attended apart from the text."""
    images = (inputs.extra.get(name) for name in ("clip_fea", "clip_fea_ref"))
    return unlike_other_keys(layout, inputs, sum(image.shape[-2] for image in images if image is not None))


def _wan_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    """`[reference frame | video | in-context latents]`."""
    _, patch_h, patch_w = model.patch_size
    prefix = suffix = 0
    reference = inputs.extra.get("reference_latent")
    if model.ref_conv is not None and reference is not None:
        prefix = (reference.shape[-2] // patch_h) * (reference.shape[-1] // patch_w)
    for latent in inputs.extra.get("context_latents") or ():
        suffix += math.prod(whole_patches(latent.shape[-3:], model.patch_size))
    return _unlike_other_keys(TokenLayout(_grid(model, inputs), prefix, suffix), inputs)


def _vace_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    return _unlike_other_keys(TokenLayout(_grid(model, inputs)), inputs)


def _vace_calls(model, inputs: ForwardInputs) -> int:
    # Each VACE block runs once for every control video of the batch.
    return len(model.blocks) + len(model.vace_blocks) * inputs.extra["vace_context"].shape[1]


def _references(model, inputs: ForwardInputs) -> int:
    """Tokens of the reference frames where they pass the video's patch embedding, which drops what fills no patch."""
    reference = inputs.extra.get("reference_latent")
    if reference is None:
        return 0
    return math.prod(size // patch for size, patch in zip(reference.shape[2:], model.patch_size, strict=True))


def _humo_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    """`[video | reference frames]`."""
    return _unlike_other_keys(TokenLayout(_grid(model, inputs), suffix=_references(model, inputs)), inputs)


def _motion(model, inputs: ForwardInputs) -> int:
    """Tokens of the motion frames: the older ones are packed at a half and a quarter of the resolution, in time too.
    Whatever their number, they are cut or padded to the packer's."""
    frames = inputs.extra.get("reference_motion")
    if frames is None:
        return 0
    packer = model.frame_packer
    return sum(
        math.prod(size // patch for size, patch in zip((t, *frames.shape[3:]), projection.kernel_size, strict=True))
        for t, projection in zip(packer.zip_frame_buckets, (packer.proj, packer.proj_2x, packer.proj_4x), strict=True)
    )


def _s2v_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    """`[video | reference frames | motion frames]`."""
    suffix = _references(model, inputs) + _motion(model, inputs)
    return _unlike_other_keys(TokenLayout(_grid(model, inputs), suffix=suffix), inputs)


def _scail_layout(model, inputs: ForwardInputs) -> TokenLayout | str:
    """`[reference frames | video | pose frames]`, all padded to whole patches; the pose comes at half the
    resolution."""
    prefix, suffix = (
        0 if latent is None else math.prod(whole_patches(latent.shape[2:], model.patch_size))
        for latent in (inputs.extra.get("reference_latent"), inputs.extra.get("pose_latents"))
    )
    return _unlike_other_keys(TokenLayout(_grid(model, inputs), prefix, suffix), inputs)


def _blocks(model, inputs: ForwardInputs) -> int:
    return len(model.blocks)


FAMILIES = {
    "comfy.ldm.wan.model.WanModel": Family(
        "Wan 2.1 and 2.2",
        _wan_layout,
        _blocks,
        note="text, image and frames to video, 5B, Fun control and inpaint, in-context latents; InfiniteTalk",
    ),
    "comfy.ldm.wan.model.VaceWanModel": Family("Wan VACE", _vace_layout, _vace_calls),
    "comfy.ldm.wan.model.CameraWanModel": Family("Wan Camera", _wan_layout, _blocks),
    "comfy.ldm.wan.model.WanModel_S2V": Family("Wan S2V", _s2v_layout, _blocks),
    "comfy.ldm.wan.model.HumoWanModel": Family("HuMo", _humo_layout, _blocks),
    "comfy.ldm.wan.model.SCAILWanModel": Family("SCAIL", _scail_layout, _blocks),
    "comfy.ldm.wan.model.SCAIL2WanModel": Family("SCAIL-2", _scail_layout, _blocks),
    # Its reference image is the latent's first frame.
    "comfy.ldm.wan.model_animate.AnimateWanModel": Family("Wan Animate", _wan_layout, _blocks),
    "comfy.ldm.wan.model_animate2.WanAnimate2Model": Family.never("Wan Animate 2", reasons.FRAME_BY_FRAME),
    "comfy.ldm.wan.model_wandancer.WanDancerModel": Family("WanDancer", _wan_layout, _blocks),
    "comfy.ldm.wan.ar_model.CausalWanModel": Family.never("Wan autoregressive", reasons.CACHED_KEYS),
}
