"""Tiny models built on Wan, one case for each kind of input."""

from __future__ import annotations

import torch

from dit_accel.accel.attention import reasons
from dit_accel.tests.comfy.tiny.case import Case, Vision, rand
from dit_accel.tests.comfy.tiny.wan import WAN

# Guidance multiplies the rounding error, which many blocks or sharp audio attention have already made large.
UNGUIDED = 1.0


def _wan(kind: str, **changes) -> dict:
    return {**WAN, "model_type": kind, **changes}


CASES = [
    Case(
        "wan camera",
        "WAN21_Camera",
        _wan("camera", in_dim=32),
        (1, 16, 5, 12, 14),
        2,
        conditions=lambda: {
            "concat_latent_image": rand(1, 16, 5, 12, 14, seed=5),
            "camera_conditions": rand(1, 24, 5, 96, 112, seed=6),
            "clip_vision_output": Vision(257, 1280),
        },
    ),
    Case(
        "wan 2.2 camera",
        "WAN22_Camera",
        _wan("camera_2.2", in_dim=36),
        (1, 16, 5, 12, 14),
        2,
        conditions=lambda: {
            "concat_latent_image": rand(1, 16, 5, 12, 14, seed=5),
            "concat_mask": torch.ones(1, 1, 5, 12, 14),
            "camera_conditions": rand(1, 24, 5, 96, 112, seed=6),
        },
    ),
    Case(
        "wan s2v",
        "WAN22_S2V",
        _wan("s2v"),
        (1, 16, 5, 12, 16),
        2,
        extra=6 * 8 + 6 * 8 + 3 * 4 + 4 * 1 * 2,
        conditions=lambda: {
            "audio_embed": rand(1, 25, 1024, 20, seed=5),
            "reference_latents": [rand(1, 16, 1, 12, 16, seed=6)],
            "reference_motion": rand(1, 16, 19, 12, 16, seed=7),
            "control_video": rand(1, 16, 5, 12, 16, seed=8),
        },
    ),
    Case(
        "wan s2v audio only",
        "WAN22_S2V",
        _wan("s2v"),
        (1, 16, 5, 11, 13),
        2,
        conditions=lambda: {"audio_embed": rand(1, 25, 1024, 20, seed=5)},
    ),
    Case(
        "wan humo",
        "WAN21_HuMo",
        _wan("humo", in_dim=36),
        (1, 16, 4, 12, 14),
        2,
        extra=2 * 42,
        cfg=UNGUIDED,
        conditions=lambda: {
            "audio_embed": rand(1, 4, 8, 5, 1280, seed=5),
            "reference_latents": [rand(1, 16, 2, 12, 14, seed=6)],
        },
    ),
    Case(
        "wan humo 1.7b audio only",
        "WAN21_HuMo",
        _wan("humo"),
        (1, 16, 5, 11, 13),
        2,
        cfg=UNGUIDED,
        conditions=lambda: {"audio_embed": rand(1, 5, 8, 5, 1280, seed=5)},
    ),
    Case(
        "wan scail",
        "WAN21_SCAIL",
        _wan("scail", in_dim=20),
        (1, 16, 4, 11, 14),
        2,
        extra=6 * 7 + 4 * 3 * 4,
        prefix=6 * 7,
        conditions=lambda: {
            "clip_vision_output": Vision(257, 1280),
            "reference_latents": [rand(1, 16, 1, 11, 14, seed=5)],
            "pose_video_latent": rand(1, 16, 4, 5, 7, seed=6),
        },
    ),
    Case(
        "wan scail 2 replacement",
        "WAN21_SCAIL2",
        _wan("scail2", in_dim=20),
        (1, 16, 4, 12, 14),
        2,
        extra=2 * 6 * 7 + 4 * 3 * 4,
        prefix=2 * 6 * 7,
        conditions=lambda: {
            "clip_vision_output": Vision(257, 1280),
            "reference_latents": [rand(1, 16, 1, 12, 14, seed=5), rand(1, 16, 1, 12, 14, seed=6)],
            "ref_mask_28ch": rand(1, 2 + 4, 28, 12, 14, seed=7),
            "pose_video_latent": rand(1, 16, 4, 6, 7, seed=8),
            "driving_mask_28ch": rand(1, 4, 28, 6, 7, seed=9),
            "ref_mask_flag": False,
        },
    ),
    Case(
        "wan animate",
        "WAN22_Animate",
        _wan("animate", in_dim=36, num_layers=5),  # a face adapter stands behind every fifth block
        (1, 16, 5, 12, 14),
        5,
        cfg=UNGUIDED,
        conditions=lambda: {
            "concat_latent_image": rand(1, 16, 5, 12, 14, seed=5),
            "concat_mask": torch.ones(1, 1, 5, 12, 14),
            "clip_vision_output": Vision(257, 1280),
            "pose_video_latent": rand(1, 16, 4, 12, 14, seed=6),
            "face_video_pixels": rand(1, 3, 1, 512, 512, seed=7),
        },
    ),
    Case(
        "wan dancer",
        "WAN22_WanDancer",
        _wan("wandancer", in_dim=36, in_dim_ref_conv=16),
        (1, 16, 5, 12, 16),
        2,
        conditions=lambda: {
            "concat_latent_image": rand(1, 16, 5, 12, 16, seed=5),
            "concat_mask": torch.ones(1, 1, 5, 12, 16),
            "clip_vision_output": Vision(257, 1280),
            "clip_vision_output_ref": Vision(257, 1280),
            "audio_embed": rand(1, 60, 35, seed=6),
            "fps": 30.0,
        },
    ),
    Case(
        "wan dancer global",
        "WAN22_WanDancer",
        _wan("wandancer", in_dim=36),
        (1, 16, 5, 11, 15),
        2,
        conditions=lambda: {
            "clip_vision_output": Vision(257, 1280),
            "audio_embed": rand(1, 60, 35, seed=6),
            "fps": 2.5,
            "audio_inject_scale": 0.7,
        },
    ),
]

# Models that stay dense, with the sampler made for them and the reason; calls are counted one a block.
DENSE = [
    (
        Case(
            "wan animate 2",
            "WAN_Animate2",
            _wan("animate2", in_dim=36),
            (1, 16, 4, 12, 14),
            2,
            conditions=lambda: {
                "clip_vision_output": Vision(257, 1280),
                "pose_video_latent": rand(1, 16, 3, 12, 14, seed=5),
            },
        ),
        "euler",
        reasons.FRAME_BY_FRAME,
    ),
    (
        Case("wan autoregressive", "WAN21_CausalAR_T2V", {**WAN, "causal_ar": True}, (1, 16, 3, 12, 14), 2, cfg=1.0),
        "ar_video",
        reasons.CACHED_KEYS,
    ),
]
