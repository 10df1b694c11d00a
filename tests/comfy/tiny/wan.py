"""Tiny Wan models, one case for each kind of input."""

from __future__ import annotations

import torch

from dit_accel.tests.comfy.tiny.case import TEXT, Case, Vision, rand

WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 256,
    "num_heads": 2,
    "num_layers": 2,
    "ffn_dim": 128,
    "text_dim": TEXT,
    "freq_dim": 256,
    "in_dim": 16,
    "out_dim": 16,
    "patch_size": (1, 2, 2),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "window_size": (-1, -1),
}

CASES = [
    Case("wan t2v", "WAN21_T2V", WAN, (1, 16, 5, 12, 14), 2),
    Case("wan t2v odd size", "WAN21_T2V", WAN, (1, 16, 5, 11, 13), 2),
    Case(
        "wan i2v",
        "WAN21_I2V",
        {**WAN, "model_type": "i2v", "in_dim": 36},
        (1, 16, 5, 12, 14),
        2,
        conditions=lambda: {
            "concat_latent_image": rand(1, 16, 5, 12, 14, seed=5),
            "concat_mask": torch.ones(1, 1, 5, 12, 14),
            "clip_vision_output": Vision(257, 1280),
        },
    ),
    Case("wan ti2v 5b", "WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}, (1, 48, 5, 12, 14), 2),
    Case(
        "wan fun control with reference",
        "WAN21_FunControl2V",
        {**WAN, "model_type": "i2v", "in_dim": 48, "in_dim_ref_conv": 16},
        (1, 16, 5, 12, 14),
        2,
        extra=42,
        prefix=42,
        conditions=lambda: {
            "concat_latent_image": rand(1, 32, 5, 12, 14, seed=5),
            "reference_latents": [rand(1, 16, 1, 12, 14, seed=6)],
        },
    ),
    Case(
        "wan fun inpaint",
        "WAN21_I2V",
        {**WAN, "model_type": "i2v", "in_dim": 36},
        (1, 16, 5, 12, 14),
        2,
        conditions=lambda: {
            "concat_latent_image": rand(1, 16, 5, 12, 14, seed=5),
            "concat_mask": torch.zeros(1, 1, 5, 12, 14),
        },
    ),
    Case(
        "wan in-context latents",
        "WAN21_T2V",
        WAN,
        (1, 16, 5, 12, 14),
        2,
        extra=2 * 6 * 7 + 3 * 4,
        conditions=lambda: {"context_latents": [rand(1, 16, 2, 12, 14, seed=7), rand(1, 16, 1, 5, 8, seed=8)]},
    ),
    Case(
        "wan time concat",
        "WAN21_T2V",
        WAN,
        (1, 16, 4, 12, 14),
        2,
        conditions=lambda: {"time_dim_concat": rand(1, 16, 2, 12, 14, seed=7)},
    ),
    Case(
        "wan vace",
        "WAN21_Vace",
        {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
        (1, 16, 5, 12, 14),
        4,
        conditions=lambda: {
            "vace_frames": [rand(1, 32, 5, 12, 14, seed=5), rand(1, 32, 5, 12, 14, seed=6)],
            "vace_mask": [torch.ones(1, 64, 5, 12, 14), torch.zeros(1, 64, 5, 12, 14)],
            "vace_strength": [1.0, 0.7],
        },
    ),
    Case(
        "wan vace with a reference frame",
        "WAN21_Vace",
        {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
        (1, 16, 6, 12, 14),  # the reference is one more latent frame in front
        3,
        conditions=lambda: {
            "vace_frames": [rand(1, 32, 6, 12, 14, seed=5)],
            "vace_mask": [torch.ones(1, 64, 6, 12, 14)],
            "vace_strength": [1.0],
        },
    ),
]
