"""Tiny LTX-Video models."""

from __future__ import annotations

import torch

from dit_accel.tests.comfy.tiny.case import TEXT, Case, rand

LTXV = {
    "image_model": "ltxv",
    "num_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "cross_attention_dim": 128,
    "caption_channels": TEXT,
    "use_keyframes_abs_pos_embedding": False,
}


def text_mask() -> dict:
    """LTX-Video takes no text without its mask, which concerns cross-attention alone."""
    mask = torch.ones(1, 20, dtype=torch.long)
    mask[:, 12:] = 0
    return {"attention_mask": mask}


def first_frame() -> torch.Tensor:
    """Noise mask of an image-to-video latent."""
    mask = torch.ones(1, 1, 5, 1, 1)
    mask[:, :, 0] = 0
    return mask


def guide_mask(step: int) -> torch.Tensor:
    """Noise mask of four video frames, then two guide frames of which every `step`-th row and column is kept."""
    mask = torch.ones(1, 1, 6, 6, 8)
    mask[:, :, 4:] = -2
    mask[:, :, 4:, ::step, ::step] = 0
    return mask


def guides() -> dict:
    """Conditions of two guides of one frame each."""
    guide = {"pre_filter_count": 48, "strength": 1.0, "pixel_mask": None, "latent_shape": [1, 6, 8]}
    return {
        **text_mask(),
        "keyframe_idxs": rand(1, 3, 96, 2, seed=5).abs() * 100,
        "guide_attention_entries": [guide, guide],
    }


CASES = [
    Case("ltx video", "LTXV", LTXV, (1, 128, 5, 6, 8), 2, conditions=text_mask),
    Case("ltx video odd size", "LTXV", LTXV, (1, 128, 5, 7, 9), 2, conditions=text_mask),
    Case("ltx video i2v", "LTXV", LTXV, (1, 128, 5, 6, 8), 2, conditions=text_mask, mask=first_frame),
    Case(
        "ltx video guides",
        "LTXV",
        LTXV,
        (1, 128, 6, 6, 8),
        2,
        extra=2 * 48,
        conditions=guides,
        mask=lambda: guide_mask(1),
    ),
    Case(
        "ltx video guides of half size",
        "LTXV",
        LTXV,
        (1, 128, 6, 6, 8),
        2,
        extra=2 * 12,
        conditions=guides,
        mask=lambda: guide_mask(2),
    ),
]
