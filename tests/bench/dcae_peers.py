"""diffusers' DC-AE with the weights of ours."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from dit_accel.accel.dcae.config import BATCH, EVIT, INTERPOLATE, UNSHUFFLE, Config
from dit_accel.accel.dcae.keys import DIFFUSERS, from_ours
from dit_accel.accel.dcae.network import DCAE


class Unavailable(Exception):  # noqa: N818
    """Why diffusers cannot run here, in one sentence."""


def diffusers_twin(network: DCAE) -> nn.Module:
    """diffusers' AutoencoderDC around the tensors of `network`. Raises Unavailable with the reason."""
    try:
        diffusers = importlib.import_module("diffusers")
        make = diffusers.AutoencoderDC
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed (pip install {error.name})") from error
    except Exception as error:  # whatever its own imports raise
        raise Unavailable(f"diffusers cannot be imported ({error})") from error
    with torch.device("meta"):
        twin = make(**diffusers_settings(network.config))
    twin.load_state_dict(from_ours(network.state_dict(), network.config, DIFFUSERS), assign=True)
    return twin.eval().requires_grad_(False)


def diffusers_settings(config: Config) -> dict:
    """The arguments of diffusers' AutoencoderDC that make this autoencoder, as JSON has them."""
    settings = {
        "latent_channels": config.latent_channels,
        "attention_head_dim": config.head_dim,
        "downsample_block_type": "pixel_unshuffle" if config.down == UNSHUFFLE else "conv",
        "upsample_block_type": "interpolate" if config.up == INTERPOLATE else "pixel_shuffle",
        "decoder_norm_types": ["batch_norm" if stage.norm == BATCH else "rms_norm" for stage in config.decoder],
        "decoder_act_fns": [stage.act for stage in config.decoder],
        "encoder_out_shortcut": config.end_shortcuts,
        "decoder_in_shortcut": config.end_shortcuts,
        "decoder_conv_act_fn": config.final_act,
        "scaling_factor": 1.0 if config.scale is None else config.scale,
    }
    for side, stages in (("encoder", config.encoder), ("decoder", config.decoder)):
        blocks = ["EfficientViTBlock" if stage.block == EVIT else "ResBlock" for stage in stages]
        settings[f"{side}_block_types"] = blocks
        settings[f"{side}_block_out_channels"] = [stage.width for stage in stages]
        settings[f"{side}_layers_per_block"] = [stage.depth for stage in stages]
        settings[f"{side}_qkv_multiscales"] = [list(stage.scales) for stage in stages]
    return settings
