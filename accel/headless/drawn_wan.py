"""A Wan 2.1 text-to-video model of any size with drawn weights, for times and memory: 14B needs no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..attention.account.run_summary import RunSummary
from ..attention.run import Settings
from ..comfy.sparse.patch import install, patch_of
from .attention_clock import AttentionClock
from .sampling import within_run

Result = TypeVar("Result")
Work = Callable[[Callable[[], Tensor]], Result]

# What the trained model that comes with the pack has in the mean over its blocks (workflows/models), whose layers are
# Wan's: weights of 1.0 to 1.4 over the root of their inputs, norms of 0.8 to 0.9, modulation of 0.11, biases of up to
# 0.1. The deviation of a sum of independent products stays that of its terms, so that it holds for any width.
WEIGHT, NORM, MODULATION, BIAS = 1.2, 0.85, 0.11, 0.05
CHANNELS, PATCH = 16, (1, 2, 2)
TEXT_TOKENS, TEXT_WIDTH = 512, 4096
SIGMA, SEED = 0.7, 0


class WanShape(NamedTuple):
    """dim: channels of a token; layers: transformer blocks. Wan 14B: 5120, 40, 40."""

    dim: int
    heads: int
    layers: int

    @property
    def feed_forward(self) -> int:
        """Channels inside a block's feed-forward: 13824 for 5120, and of that proportion for others."""
        return round(self.dim * 2.7 / 64) * 64


class DrawnWan:
    """The model and one drawn prompt, on a device, with weights made there in `dtype` one after the other.

    latent: [1, 16, T, H, W], what it denoises at noise level 0.7. Needs ComfyUI's code (`embedded`).
    """

    def __init__(self, shape: WanShape, latent: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        self._latent = latent
        self._model = _patcher(shape, device, dtype)
        random = torch.Generator().manual_seed(SEED)
        self._positive = [[torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=random), {}]]

    def dense(self, work: Work[Result]) -> tuple[Result, AttentionClock]:
        """What work(evaluate) gives without the pack, and the clock of its self-attention. evaluate: as in
        `within_run`."""
        clock = AttentionClock()
        return self._run(clock.attach(self._model), work), clock

    def sparse(self, settings: Settings, work: Work[Result]) -> tuple[Result, RunSummary]:
        """The same with sparse attention, as the node installs it, and the run's summary."""
        model = install(self._model, settings)
        result = self._run(model, work)
        return result, patch_of(model).history[-1]

    def _run(self, model, work: Work[Result]) -> Result:
        with torch.inference_mode():
            return within_run(model, self._positive, self._latent, SIGMA, SEED, work)


def _patcher(shape: WanShape, device: torch.device, dtype: torch.dtype):
    import comfy.model_patcher
    import comfy.supported_models

    settings: dict[str, Any] = {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "patch_size": PATCH,
        "text_len": TEXT_TOKENS,
        "text_dim": TEXT_WIDTH,
        "in_dim": CHANNELS,
        "out_dim": CHANNELS,
        "dim": shape.dim,
        "num_heads": shape.heads,
        "num_layers": shape.layers,
        "ffn_dim": shape.feed_forward,
    }
    config = comfy.supported_models.WAN21_T2V(settings)
    config.set_inference_dtype(dtype, None)
    with torch.inference_mode():
        model = config.get_model({}, device=device)
        _draw(model.diffusion_model)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def _draw(network: torch.nn.Module) -> None:
    random = torch.Generator(next(network.parameters()).device).manual_seed(SEED)
    for name, parameter in network.named_parameters():
        if "modulation" in name:
            parameter.normal_(0, MODULATION, generator=random)
        elif parameter.ndim > 1:
            parameter.normal_(0, WEIGHT * parameter[0].numel() ** -0.5, generator=random)
        elif name.endswith("bias"):
            parameter.normal_(0, BIAS, generator=random)
        else:
            parameter.fill_(NORM)
