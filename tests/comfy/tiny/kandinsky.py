"""Tiny Kandinsky 5."""

from __future__ import annotations

import torch

from dit_accel.tests.comfy.tiny.case import TEXT, Case, rand

LITE = {
    "image_model": "kandinsky5",
    "model_dim": 128,
    "axes_dims": (16, 24, 24),
    "time_dim": 64,
    "ff_dim": 128,
    "visual_embed_dim": 132,
    "in_text_dim": TEXT,
    "num_text_blocks": 2,
    "num_visual_blocks": 3,
}
PRO = {**LITE, "model_dim": 256, "axes_dims": (32, 48, 48)}


def _start_frame() -> dict:
    mask = torch.ones(1, 1, 5, 12, 14)
    mask[:, :, :1] = 0.0
    return {"time_dim_replace": rand(1, 16, 1, 12, 14, seed=5), "concat_mask": mask}


CASES = [
    Case("kandinsky 5 lite", "Kandinsky5", LITE, (1, 16, 5, 12, 14), 3),
    Case("kandinsky 5 pro i2v", "Kandinsky5", PRO, (1, 16, 5, 12, 14), 3, conditions=_start_frame),
]
