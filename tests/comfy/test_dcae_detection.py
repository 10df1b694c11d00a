"""No other autoencoder that ComfyUI runs is taken for a DC-AE: their tensors are those of ComfyUI's own classes."""

import importlib

import pytest
import torch

from dit_accel.accel.dcae.detect import detect

KL = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
HUNYUAN = {"in_channels": 3, "out_channels": 3, "num_res_blocks": 2}
IMAGE = {
    **HUNYUAN,
    "block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "ffactor_spatial": 32,
    "z_channels": 64,
    "downsample_match_channel": True,
    "upsample_match_channel": True,
}
REFINER = {
    **HUNYUAN,
    "block_out_channels": [128, 256, 512, 1024, 1024],
    "ffactor_spatial": 16,
    "ffactor_temporal": 4,
    "z_channels": 32,
    "downsample_match_channel": True,
    "upsample_match_channel": True,
}
WAN = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True]}


def _engine(module: str, settings: dict):
    parts = {
        f"{part}_config": {"target": f"comfy.ldm.hunyuan_video.{module}.{part.title()}", "params": settings}
        for part in ("encoder", "decoder")
    }
    regularizer = {"target": "comfy.ldm.models.autoencoder.EmptyRegularizer"}
    return "models.autoencoder", "AutoencodingEngine", {**parts, "regularizer_config": regularizer}


def _kl(channels: int, **changes):
    settings = {"ddconfig": {**KL, "z_channels": channels, **changes}, "embed_dim": channels}
    return "models.autoencoder", "AutoencoderKL", settings


# What it is, the class and its arguments, and what the refusal calls it.
OTHERS = (
    ("SD, SDXL", _kl(4), "Stable Diffusion 1, 2 or XL"),
    ("FLUX.1, SD3", _kl(16), r"Stable Diffusion 3, FLUX\.1"),
    ("FLUX.2", _kl(32), r"FLUX\.2"),
    ("HunyuanVideo", _kl(16, conv3d=True, time_compress=4), "HunyuanVideo"),
    ("HunyuanImage", _engine("vae", IMAGE), r"HunyuanImage 2\.1"),
    ("HunyuanVideo 1.5", _engine("vae_refiner", REFINER), r"HunyuanVideo 1\.5"),
    ("Wan 2.1", ("wan.vae", "WanVAE", {"dim": 96, "z_dim": 16, **WAN}), "Wan or Qwen-Image"),
    ("Wan 2.2", ("wan.vae2_2", "WanVAE", {"dim": 160, "z_dim": 48, **WAN}), "Wan or Qwen-Image"),
    ("LTX", ("lightricks.vae.causal_video_autoencoder", "VideoVAE", {"version": 1}), "LTX-Video"),
    ("ACE-Step", ("ace.vae.autoencoder_dc", "AutoencoderDC", {}), "stereo sound"),
    ("CogVideoX", ("cogvideo.vae", "AutoencoderKLCogVideoX", {"latent_channels": 16}), "CogVideoX"),
)


def refused(shapes, words):
    with pytest.raises(ValueError, match=rf"expected .* DC-AE.*{words}"):
        detect(shapes)


@pytest.mark.parametrize(("model", "words"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_other_autoencoders_are_refused_by_name(comfy, model, words):
    module, name, settings = model
    with torch.device("meta"):
        made = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)(**settings)
    shapes = {key: tuple(value.shape) for key, value in made.state_dict().items()}
    assert len(shapes) > 50
    for prefix in ("", "vae.", "first_stage_model.", "dcae." if name == "AutoencoderDC" else ""):
        refused({prefix + key: shape for key, shape in shapes.items()}, words)


def test_taesd_is_refused_by_name(comfy):
    from comfy.taesd.taesd import TAESD

    refused({key: tuple(value.shape) for key, value in TAESD().state_dict().items()}, "TAESD")
