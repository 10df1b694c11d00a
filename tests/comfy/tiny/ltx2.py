"""Tiny LTX-2 models."""

from __future__ import annotations

from dit_accel.tests.comfy.tiny.case import TEXT, Case, rand
from dit_accel.tests.comfy.tiny.lightricks import guide_mask, guides

LTX_20 = {
    "image_model": "ltxav",
    "num_layers": 2,
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "audio_attention_head_dim": 64,
    "audio_num_attention_heads": 2,
    "cross_attention_dim": 256,
    "audio_cross_attention_dim": 128,
    "caption_channels": TEXT // 2,  # text that the connectors have been through is the video's and the audio's
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
    "audio_connector_num_attention_heads": 1,
    "rope_type": "split",
    "frequencies_precision": "float64",
}
# LTX-2.3 projects the text in front of its connectors, which fill it up to 1024 tokens.
LTX_23 = {
    **LTX_20,
    "caption_channels": TEXT,
    "caption_proj_before_connector": True,
    "cross_attention_adaln": True,
    "apply_gated_attention": True,
    "connector_apply_gated_attention": True,
}
AUDIO = (1, 8, 26, 16)

CASES = [
    Case("ltx 2", "LTXAV", LTX_20, (1, 128, 5, 6, 7), 2, audio=AUDIO),
    Case("ltx 2 without audio", "LTXAV", LTX_20, (1, 128, 5, 6, 7), 2),
    Case(
        "ltx 2 reference audio",
        "LTXAV",
        LTX_20,
        (1, 128, 5, 6, 7),
        2,
        audio=AUDIO,
        conditions=lambda: {"ref_audio": {"tokens": rand(1, 9, 128, seed=5)}},
    ),
    Case("ltx 2.3", "LTXAV", LTX_23, (1, 128, 5, 6, 7), 2, audio=AUDIO),
    Case(
        "ltx 2.3 guides",
        "LTXAV",
        LTX_23,
        (1, 128, 6, 6, 8),
        2,
        extra=2 * 12,
        audio=AUDIO,
        mask=lambda: guide_mask(2),
        conditions=lambda: {**guides(), "attention_mask": None},  # the connectors fill text up instead
    ),
]
