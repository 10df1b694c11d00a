"""What core reads from the modules of a 4-bit model: names that it can patch, and tensors that it writes into files.

A BaseModel's state dict lists what merges, hooks and LoRAs change: core takes each of its names for an attribute, where
a quantised layer has a weight and a bias. The network's own state dict is what a file holds, scales and all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from comfy.model_patcher import LazyCastingParam
from comfy_kitchen.tensor import QuantizedTensor
from comfy_kitchen.tensor.base import dequantize_args
from torch import Tensor

from ...quant.formats.comfy_quant import SVDQUANT
from ...quant.formats.comfy_quant_markers import marker
from ...quant.formats.comfy_quant_writer import layer_parts, shifted_bias
from . import lora
from .weight4_layout import is_weight4, layers, unwrap, with_low_rank

# What a BaseModel calls its network.
NETWORK = "diffusion_model."


def asks_for_attributes(prefix: str) -> bool:
    """Whether a state dict whose names begin with `prefix` is a BaseModel's."""
    return prefix.startswith(NETWORK)


class NamesAttributes:
    """Of a module with a weight in any quantised format: its part of a BaseModel's state dict."""

    def state_dict(self, *args, destination=None, prefix="", **kwargs):
        if not asks_for_attributes(prefix) or not isinstance(self.weight, QuantizedTensor):
            return super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
        state_dict = {} if destination is None else destination
        state_dict[f"{prefix}weight"] = PatchedWeight.of(self.weight, _loaded_patch(self, f"{prefix}weight"))
        if getattr(self, "bias", None) is not None:
            state_dict[f"{prefix}bias"] = self.bias
        return state_dict


class PatchedWeight(QuantizedTensor):
    """A quantised weight for callers that know plain tensors only: whatever is computed with it is computed with the
    weight that it stands for, and `patch` done to that."""

    patch: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(cls, weight: QuantizedTensor, patch: Callable[[Tensor], Tensor] | None = None) -> PatchedWeight:
        """`weight` with patch(dense weight [N, K]) in its place, if there is any."""
        patched = cls(weight._qdata, weight._layout_cls, weight._params)
        patched.patch = patch
        return patched

    def dequantize(self) -> Tensor:
        dense = super().dequantize()
        return dense if self.patch is None else self.patch(dense)

    def data_ptr(self):
        # Whoever writes a file by pointer and shape would read past the end of the codes.
        raise TypeError(
            "a quantised weight cannot be written as it stands in a model's state dict: save the model with a node "
            "such as Save Checkpoint, or what model.diffusion_model.state_dict() holds"
        )

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return function(*dequantize_args(args), **dequantize_args(kwargs or {}))


class SavedCodes(torch.Tensor):
    """Codes on their way into a file. Core wraps what it saves in a Parameter that wants gradients, which integers
    refuse; these do not mind."""

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        return self


def weight_to_read(layer: torch.nn.Module, patched: Tensor) -> Tensor:
    """The weight of a 4-bit layer for callers that read or save it. patched: the dense weight with all patches."""
    return PatchedWeight.of(saved_weight(layer)) if is_lossless(layer) else patched


def is_lossless(layer: torch.nn.Module) -> bool:
    """Whether a 4-bit layer can be saved with the patches that are loaded: LoRAs of low rank only."""
    patches, functions = layer.patches()
    loras = lora.branches(patches, tuple(layer.weight.shape), layer.weight._params.scale)
    return not (loras.dense or loras.additive or functions)


def saved_weight(layer: torch.nn.Module) -> QuantizedTensor:
    """The weight of a 4-bit layer with the LoRAs of low rank that are loaded, appended to its rank."""
    weight = unwrap(layer.weight)
    like = weight.scale if weight.smooth is None else weight.smooth
    low_rank = lora.branches(layer.patches()[0], weight.shape, like).low_rank
    if not low_rank:
        return layer.weight
    if weight.proj_down is not None:
        low_rank.insert(0, (weight.proj_down, weight.proj_up))
    down, up = (torch.cat(parts, dim=1) for parts in zip(*low_rank, strict=True))
    return with_low_rank(layer.weight, down, up, layer.bias)


def file_parts(layer: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors of a 4-bit layer in a comfy_quant file, by their name in the layer."""
    weight = saved_weight(layer)
    tensors, config = layer_parts(unwrap(weight), weight._params.saved_as)
    tensors["weight"] = tensors["weight"].as_subclass(SavedCodes)
    tensors["comfy_quant"] = marker(config)
    if layer.bias is not None:
        tensors["bias"] = _saved_bias(layer, layer.bias)
    return tensors


def prepare_saving(model) -> None:
    """Lets a BaseModel refuse to be saved with patches that a layer in 4 bits cannot hold, and write the biases as
    the format of their layer wants them."""
    save = model.state_dict_for_saving

    def checked(network: dict[str, Tensor], *args, **kwargs):
        for name, layer in layers(model.diffusion_model).items():
            if not is_lossless(layer):
                raise ValueError(f"{name}: a layer in 4 bits can be saved with LoRAs of low rank only")
            bias = network.get(f"{name}.bias")
            # Core patches these when they are written, and knows nothing of the format.
            if isinstance(bias, LazyCastingParam):
                network[f"{name}.bias"] = _saved_bias(layer, bias.to("cpu"))
        return save(network, *args, **kwargs)

    model.state_dict_for_saving = checked


def _loaded_patch(module: torch.nn.Module, key: str) -> Callable[[Tensor], Tensor] | None:
    """What the patches that run beside a 4-bit layer would make of its weight. Other formats have theirs baked in."""
    patches = module.patches()[0] if is_weight4(module.weight) else None
    return functools.partial(lora.patched, patches=patches, key=key) if patches else None


def _saved_bias(layer: torch.nn.Module, bias: Tensor) -> Tensor:
    """The plain bias as the layer's format has it: svdquant_w4a4 wants the one for a shifted input."""
    params = layer.weight._params
    if params.saved_as != SVDQUANT or params.unsigned_from is None:
        return bias
    return shifted_bias(bias, unwrap(layer.weight.to(bias.device)))
