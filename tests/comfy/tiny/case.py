"""One tiny video model of a test, built through ComfyUI's own classes. Importing this needs ComfyUI on sys.path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.model_patcher
import comfy.nested_tensor
import comfy.supported_models
import torch

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


def _patcher(config_class, unet_config: dict, sampling: dict) -> comfy.model_patcher.ModelPatcher:
    config = config_class(dict(unet_config))
    config.sampling_settings = {**config.sampling_settings, **sampling}
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    initialise(model.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)


class Vision:
    """Stands in for a CLIP vision output."""

    def __init__(self, tokens: int, width: int) -> None:
        self.penultimate_hidden_states = self.last_hidden_state = rand(1, tokens, width, seed=9)


@dataclass(frozen=True)
class Case:
    """One row of the family test: a model, a latent, conditions, and what must come out.

    calls: sparse calls per forward. extra: tokens that are not video; prefix: those of them in front of it. text: text
    tokens. mask: the latent's noise mask. sampling: noise schedule settings that differ from the model's own.
    audio: shape of the audio latent that is sampled with the video's.
    """

    name: str
    config: str
    unet: dict
    latent: tuple[int, ...]
    calls: int
    extra: int = 0
    prefix: int = 0
    text: int = 20
    cfg: float = 4.0
    batches: bool = True
    sampling: dict = field(default_factory=dict)
    conditions: Callable[[], dict] = field(default=dict)
    mask: Callable[[], torch.Tensor | None] = lambda: None
    audio: tuple[int, ...] | None = None

    def model(self) -> comfy.model_patcher.ModelPatcher:
        return _patcher(getattr(comfy.supported_models, self.config), self.unet, self.sampling)

    def latents(self, batch: int, make: Callable[..., torch.Tensor]):
        """A batch of what is sampled, each stream made by `make(*shape)`: a tensor, or a nested one with audio."""
        streams = [make(batch, *shape[1:]) for shape in (self.latent, self.audio) if shape]
        return comfy.nested_tensor.NestedTensor(streams) if self.audio else streams[0]

    def conditioning(self, seed: int, **changes) -> list:
        extra = {"pooled_output": rand(1, 768, seed=seed), **self.conditions(), **changes}
        return [[rand(1, self.text, TEXT, seed=seed), extra]]
