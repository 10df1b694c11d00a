"""Builds tiny video models through ComfyUI's own model classes and samples them through its own samplers.

Importing this needs ComfyUI on sys.path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.run import Settings
from dit_accel.accel.comfy import patch

TEXT = 64  # text width of the tiny models


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def initialise(module: torch.nn.Module, seed: int = 0) -> None:
    """Random weights that keep activations near unit size and make attention depend on content."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "modulation" in name:
            noise *= 0.3
        elif parameter.ndim >= 2:
            noise *= parameter[0].numel() ** -0.5
        elif name.endswith(("weight", "scale")):
            # Sharp attention: large query and key norms.
            noise = torch.full_like(
                noise, 2.0 if "norm_q" in name or "norm_k" in name or "_norm.scale" in name else 1.0
            )
        else:
            noise *= 0.02
        parameter.data.copy_(noise)
        parameter.requires_grad_(False)


def _patcher(config_class, unet_config: dict) -> comfy.model_patcher.ModelPatcher:
    config = config_class(dict(unet_config))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    initialise(model.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)


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


class _Vision:
    """Stands in for a CLIP vision output."""

    def __init__(self, tokens: int, width: int) -> None:
        self.penultimate_hidden_states = self.last_hidden_state = rand(1, tokens, width, seed=9)


@dataclass(frozen=True)
class Case:
    """One row of the family test: a model, a latent, conditions, and what must come out.

    calls: sparse calls per forward. extra: tokens that are not video. text: text tokens.
    """

    name: str
    config: str
    unet: dict
    latent: tuple[int, ...]
    calls: int
    extra: int = 0
    text: int = 20
    cfg: float = 4.0
    batches: bool = True
    conditions: Callable[[], dict] = field(default=dict)

    def model(self) -> comfy.model_patcher.ModelPatcher:
        return _patcher(getattr(comfy.supported_models, self.config), self.unet)

    def conditioning(self, seed: int, **changes) -> list:
        extra = {"pooled_output": rand(1, 768, seed=seed), **self.conditions(), **changes}
        return [[rand(1, self.text, TEXT, seed=seed), extra]]


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
            "clip_vision_output": _Vision(257, 1280),
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
    Case("hunyuan 1", "HunyuanVideo", HUNYUAN, (1, 16, 5, 12, 14), 3, extra=20),
    Case(
        "hunyuan 1 reference latent",
        "HunyuanVideo",
        HUNYUAN,
        (1, 16, 5, 12, 14),
        3,
        extra=20 + 42,
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
        conditions=lambda: {
            "conditioning_byt5small": rand(1, 6, 1472, seed=5),
            "clip_vision_output": _Vision(30, 1152),
        },
    ),
]


def budget(**changes) -> Budget:
    """Sparse everywhere, unless changed."""
    return Budget(
        **{
            "top_p": 1.0,
            "floor": 1.0,
            "dense_first": 0.0,
            "dense_last": 0.0,
            "dense_blocks": frozenset(),
            "min_tokens": 0,
            **changes,
        }
    )


def sparse(model, **changes):
    """`model` with sparse attention on the reference backend."""
    names = ("pattern", "token_order", "fallback")
    settings = {"fallback": "reference"} | {name: changes.pop(name) for name in names if name in changes}
    return patch.install(model, Settings(**settings, budget=budget(**changes)))


def history(model):
    return model.get_attachment(patch.KEY).history


def sample(
    model,
    case: Case,
    *,
    steps: int = 2,
    cfg: float | None = None,
    sampler: str = "euler",
    positive=None,
    negative=None,
    batch: int = 1,
    **kwargs,
) -> torch.Tensor:
    """The latent that ComfyUI's sampler makes from fixed noise."""
    shape = (batch, *case.latent[1:])
    return comfy.sample.sample(
        model,
        rand(*shape, seed=1),
        steps,
        case.cfg if cfg is None else cfg,
        sampler,
        "simple",
        positive or case.conditioning(2),
        negative or case.conditioning(3),
        torch.zeros(shape),
        disable_pbar=True,
        seed=0,
        **kwargs,
    )
