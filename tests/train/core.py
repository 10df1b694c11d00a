"""ComfyUI's own modules of the two networks, built small and ready to train."""

from __future__ import annotations

import torch

from dit_accel.accel.headless.embedded import import_comfyui
from dit_accel.accel.headless.server import find_comfyui, missing_comfyui
from dit_accel.tests.train.start import start_as_resizing

VAE = {
    "dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
# Standard deviation of a prompt's numbers, as a text encoder makes them. With numbers of size one, thousands of them
# move the first layer so far in one step that its activations die and prompts become one.
PROMPT_SCALE = 0.05
# Head dim 128 and the text width 4096 are what ComfyUI expects of a Wan 2.1 checkpoint.
DIT = {"dim": 256, "ffn_dim": 1024, "num_heads": 2, "num_layers": 6, "text_dim": 4096}


def make_vae() -> torch.nn.Module:
    """Wan 2.1's autoencoder, 16 channels wide at full resolution; fp32 on the CPU."""
    _import_comfyui()
    from comfy.ldm.wan.vae import WanVAE

    vae = _initialise(WanVAE(**VAE))
    start_as_resizing(vae)
    return vae


def make_dit() -> torch.nn.Module:
    """Wan 2.1's text-to-video transformer with 6 blocks of 2 x 128; fp32 on the CPU."""
    _import_comfyui()
    import comfy.ops
    from comfy.ldm.flux.math import _apply_rope1
    from comfy.ldm.wan import model as wan

    # The fast one has no backward pass.
    wan.apply_rope1 = _apply_rope1
    if not torch.cuda.is_available():
        wan.optimized_attention = _attention
    model = _initialise(wan.WanModel(**DIT, operations=comfy.ops.disable_weight_init, dtype=torch.float32))
    for block in model.blocks:
        # Every block starts as the identity: its gates are the modulation's third and sixth part.
        block.modulation.data[:, [2, 5]] = 0
    torch.nn.init.zeros_(model.head.head.weight)
    # Prompts come in with the small numbers of a text encoder.
    model.text_embedding[0].weight.data /= PROMPT_SCALE
    return model


def latent_statistics() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [16, 1, 1, 1] that ComfyUI assumes of the latents of a Wan 2.1 autoencoder."""
    _import_comfyui()
    from comfy.latent_formats import Wan21

    known = Wan21()
    return known.latents_mean[0], known.latents_std[0]


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, **_) -> torch.Tensor:
    """Attention of [B, N, heads * D] as two matrix products: in bf16 on a CPU twice as fast as PyTorch's own."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _import_comfyui() -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit(missing_comfyui())
    # Its PyTorch attention is the one that has a backward pass.
    import_comfyui(comfyui, "--use-pytorch-cross-attention", *([] if torch.cuda.is_available() else ["--cpu"]))


def _initialise(model: torch.nn.Module) -> torch.nn.Module:
    # ComfyUI leaves the weights as they come from the allocator: they are meant to be loaded.
    for name, weight in model.named_parameters():
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            torch.nn.init.ones_(weight)
        elif name.endswith("modulation"):
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        elif weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        else:
            torch.nn.init.zeros_(weight)
    return model
