"""Tiny CogVideoX 1 and 1.5."""

from __future__ import annotations

from dit_accel.tests.comfy.tiny.case import TEXT, Case, rand

COGVIDEO = {
    "image_model": "cogvideox",
    "num_attention_heads": 3,  # the position embedding is built for a width that 3 divides
    "attention_head_dim": 64,
    "time_embed_dim": 64,
    "num_layers": 2,
    "in_channels": 16,
    "patch_size": 2,
    "text_embed_dim": TEXT,
    "use_learned_positional_embeddings": False,
    "use_rotary_positional_embeddings": True,
}

# CogVideoX's own first sigma, 4518, would round the latent by more than the tests allow.
SAMPLING = {"zsnr": False}

CASES = [
    Case(
        "cogvideox 1 t2v learned positions",
        "CogVideoX_T2V",
        {**COGVIDEO, "use_learned_positional_embeddings": True, "use_rotary_positional_embeddings": False},
        (1, 16, 5, 12, 14),
        2,
        extra=20,
        prefix=20,
        sampling=SAMPLING,
    ),
    Case(
        "cogvideox 1 i2v odd size",
        "CogVideoX_I2V",
        {**COGVIDEO, "in_channels": 32},
        (1, 16, 5, 11, 13),
        2,
        extra=20,
        prefix=20,
        sampling=SAMPLING,
        conditions=lambda: {"concat_latent_image": rand(1, 16, 1, 11, 13, seed=5)},
    ),
    Case(
        "cogvideox 1.5 i2v odd frames",
        "CogVideoX_I2V",
        {**COGVIDEO, "in_channels": 32, "patch_size_t": 2, "ofs_embed_dim": 64},
        (1, 16, 7, 12, 14),
        2,
        extra=20,
        prefix=20,
        sampling=SAMPLING,
        conditions=lambda: {"concat_latent_image": rand(1, 16, 1, 12, 14, seed=5)},
    ),
]
