"""Tiny HunyuanVideo models."""

from __future__ import annotations

import torch

from dit_accel.tests.comfy.tiny.case import TEXT, Case, Vision, rand

HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "patch_size": [1, 2, 2],
    "out_channels": 16,
    "vec_in_dim": 768,
    "axes_dim": [16, 56, 56],
    "meanflow": False,
    "context_in_dim": TEXT,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 2,
    "theta": 256,
    "qkv_bias": True,
    "byt5": False,
    "guidance_embed": True,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
HUNYUAN_15 = {
    **HUNYUAN,
    "in_channels": 65,
    "patch_size": [1, 1, 1],
    "out_channels": 32,
    "vec_in_dim": None,
    "byt5": True,
    "guidance_embed": False,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
}


CASES = [
    Case("hunyuan 1", "HunyuanVideo", HUNYUAN, (1, 16, 5, 12, 14), 3, extra=20, prefix=20),
    Case(
        "hunyuan 1 reference latent",
        "HunyuanVideo",
        HUNYUAN,
        (1, 16, 5, 12, 14),
        3,
        extra=20 + 42,
        prefix=20 + 42,
        cfg=1.0,
        batches=False,
        conditions=lambda: {"ref_latent": rand(1, 16, 1, 12, 14, seed=5)},
    ),
    Case(
        "hunyuan 1 token replace",
        "HunyuanVideo",
        HUNYUAN,
        (1, 16, 5, 12, 14),
        3,
        extra=20,
        prefix=20,
        batches=False,
        conditions=lambda: {"guiding_frame_index": 0},
    ),
    Case(
        "hunyuan 1.5 i2v",
        "HunyuanVideo15",
        HUNYUAN_15,
        (1, 32, 5, 7, 9),
        3,
        extra=20,
        prefix=20,
        conditions=lambda: {
            "concat_latent_image": rand(1, 32, 5, 7, 9, seed=5),
            "concat_mask": torch.ones(1, 1, 5, 7, 9),
        },
    ),
    Case(
        "hunyuan 1.5 with byt5 and vision",
        "HunyuanVideo15",
        HUNYUAN_15,
        (1, 32, 5, 7, 9),
        3,
        extra=20 + 6 + 30,
        prefix=20 + 6 + 30,
        conditions=lambda: {
            "conditioning_byt5small": rand(1, 6, 1472, seed=5),
            "clip_vision_output": Vision(30, 1152),
        },
    ),
]
