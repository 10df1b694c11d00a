"""Tiny MiniMax H3 models."""

from __future__ import annotations

import comfy.model_patcher
import torch

from dit_accel.tests.comfy.tiny.case import TEXT, Case, rand

H3 = {
    "image_model": "minimax_h3",
    "num_layers": 2,
    "token_refiner_num_layers": 1,
    "hidden_size": 256,
    "latents_dim": 24,
    "audio_latents_dim": 32,
    "attention_head_dim": 128,
    "num_attention_heads": 2,
    "ffn_hidden_size": 256,
    "text_dim": TEXT,
    "timestep_input_dim": 256,
    "time_embed_hidden_size": 128,
    "time_embed_dim": 128,
    "rope_inv_freq_len": 16,
}
VIDEO = (1, 24, 5, 12, 14)
AUDIO = (1, 32, 2, 11)


class H3Case(Case):
    def model(self) -> comfy.model_patcher.ModelPatcher:
        model = super().model()
        # Read from the checkpoint, and left as it was allocated without one.
        frequencies = model.model.diffusion_model.rope.inv_freq
        frequencies.copy_(10000.0 ** -torch.linspace(0, 1, len(frequencies)))
        return model


def _keyframes() -> dict:
    return {
        "minimax_keyframes": [
            {"resolved_frame_index": 0, "latent": rand(1, 24, 1, 12, 14, seed=5)},
            {
                "resolved_frame_index": 5,
                "latent": rand(1, 24, 2, 12, 14, seed=6),
                "audio_latent": rand(1, 32, 2, 3, seed=7),
            },
            {"resolved_frame_index": 9, "audio_latent": rand(1, 32, 2, 2, seed=8)},
        ]
    }


def _references() -> dict:
    """An image, a video with and one without sound, and sound alone."""
    return {
        "minimax_refs": [
            {"kind": "image", "latent_h": 8, "latent_w": 10, "latent": rand(1, 24, 1, 8, 10, seed=5)},
            {
                "kind": "video_audio",
                "latent_t": 2,
                "latent_h": 4,
                "latent_w": 6,
                "ref_audio_t": 4,
                "latent": rand(1, 24, 2, 4, 6, seed=6),
                "audio_latent": rand(1, 32, 2, 4, seed=7),
            },
            {
                "kind": "video",
                "latent_t": 2,
                "latent_h": 4,
                "latent_w": 4,
                "ref_audio_t": 0,
                "latent": rand(1, 24, 2, 4, 4, seed=8),
                "audio_latent": None,
            },
            {"kind": "audio", "ref_audio_t": 3, "audio_latent": rand(1, 32, 2, 3, seed=9)},
        ]
    }


def _case(name: str, video: tuple[int, ...], others: int, **changes) -> Case:
    """`others`: keyframe and reference tokens, between the 20 of the text and those of the audio."""
    extra = 20 + others + 2 * AUDIO[-1]
    # The model takes no batch: with guidance, each forward would be two.
    return H3Case(name, "MiniMaxH3", H3, video, 2, extra, extra, audio=AUDIO, cfg=1.0, batches=False, **changes)


CASES = [
    _case("minimax h3", VIDEO, 0),
    _case("minimax h3 odd size", (1, 24, 5, 11, 13), 0),
    _case("minimax h3 keyframes", VIDEO, 3 * 42 + 2 * 3 + 2 * 2, conditions=_keyframes),
    _case("minimax h3 references", VIDEO, 20 + (2 * 4 + 2 * 6) + 2 * 4 + 2 * 3, conditions=_references),
]
