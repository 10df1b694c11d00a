"""The operations of a 4-bit model: ComfyUI's mixed-precision ones, whose Linear also takes a Weight4.

Layers that are not in 4 bits, and those in formats that core knows, are core's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import comfy.ops
import torch
from comfy.model_patcher import LowVramPatch
from torch import Tensor

from ...quant.formats.comfy_quant import SVDQUANT
from ...quant.formats.comfy_quant_markers import marker
from ...quant.formats.comfy_quant_writer import layer_parts
from ...quant.linear import quantised_linear
from ...quant.shared import siblings
from ...quant.weight4 import Weight4
from . import lora
from .weight4_layout import is_weight4, unwrap, with_low_rank


def operations(dtype: torch.dtype, choose: Callable[[Weight4], str]) -> type:
    """Operations for BaseModel's `custom_operations`. dtype: of the layers that are not quantised; choose: the
    arithmetic of a 4-bit layer, one of compute.PATHS."""
    core = comfy.ops.mixed_precision_ops({}, dtype)

    class Weight4Ops(core):
        class Linear(core.Linear):
            weight_lowvram_function = None
            sibling = None

            def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
                weight = state_dict.get(f"{prefix}weight")
                if not is_weight4(weight):
                    super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
                    return
                expected = self.out_features, self.in_features
                if tuple(weight.shape) != expected:
                    errors.append(f"{prefix}weight: expected shape {expected}, found {tuple(weight.shape)}")
                    return
                bias = state_dict.get(f"{prefix}bias")
                if bias is None and self.bias is not None:
                    missing.append(f"{prefix}bias")
                self.key = f"{prefix}weight"
                self.path = choose(unwrap(weight))
                self.weight = torch.nn.Parameter(weight, requires_grad=False)
                self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

            def forward(self, input: Tensor, *args, **kwargs) -> Tensor:
                if not is_weight4(self.weight):
                    return super().forward(input, *args, **kwargs)
                comfy.ops.run_every_op()
                patches, functions = self.patches()
                with self.packed(input) as (weight, bias):
                    loras = lora.branches(patches, tuple(self.weight.shape), input)
                    bias, shift = self.plain_bias(bias, weight if is_weight4(weight) else self.weight, input.device)
                    if loras.dense or functions or not is_weight4(weight):
                        dense = weight.dequantize() if is_weight4(weight) else weight
                        dense = lora.patched(dense.to(input.dtype), patches, self.key)
                        for function in functions:
                            dense = function(dense)
                        return torch.nn.functional.linear(input, dense, None if bias is None else bias.to(input.dtype))
                    out = quantised_linear(
                        input,
                        unwrap(weight),
                        bias,
                        self.path,
                        loras.low_rank,
                        shift=shift,
                        sibling=self.sibling,
                    )
                    for adapter in loras.additive:
                        out = out + adapter.h(input, out)
                    return out

            def packed(self, input: Tensor) -> comfy.ops.CastBiasWeightContext:
                """The weight, still in 4 bits, and the bias on the device of `input`."""
                with self._without_functions():
                    return comfy.ops.CastBiasWeightContext(
                        self,
                        None,
                        dtype=self.weight.dtype,
                        device=input.device,
                        bias_dtype=input.dtype,
                        offloadable=True,
                        compute_dtype=input.dtype,
                        want_requant=True,
                    )

            def plain_bias(
                self, bias: Tensor | None, weight: Tensor, device: torch.device
            ) -> tuple[Tensor | None, Tensor | None]:
                """The bias without an engine's shift, and what the shift adds, if the layer has one. Core saves a
                layer's own bias, so that is what its format wants: svdquant_w4a4 the one for a shifted input.
                weight: the layer's, on the device unless core dequantised what is there."""
                params = weight._params
                if params.shift is None:
                    return bias, None
                shift = params.shift.to(device)
                return bias + shift if params.saved_as == SVDQUANT else bias, shift

            def patches(self) -> tuple[list[tuple], list[Callable]]:
                """What LoRA loaders ask of the weight, and what other code does."""
                return _patches_among((self.weight_lowvram_function, *self.weight_function))

            def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **kwargs):
                """Core sets what it has patched, or asks what to save. A 4-bit weight stays as it is: its patches run
                beside it (attach_patches)."""
                if not is_weight4(self.weight):
                    return super().set_weight(weight, inplace_update, seed, return_weight, **kwargs)
                if inplace_update:
                    raise RuntimeError(
                        f"{self.key}: LoRAs that are scheduled by hooks cannot change a layer in 4 bits; load the LoRA "
                        "for the whole run instead"
                    )
                if return_weight:
                    return self.saved_weight()

            def state_dict(self, *args, destination=None, prefix="", **kwargs):
                if not is_weight4(self.weight):
                    return super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
                state_dict = {} if destination is None else destination
                weight = self.saved_weight()
                tensors, config = layer_parts(unwrap(weight), weight._params.saved_as)
                tensors["weight"] = tensors["weight"].as_subclass(SavedCodes)
                tensors["comfy_quant"] = marker(config)
                if self.bias is not None:
                    tensors["bias"] = self.bias
                state_dict.update({f"{prefix}{name}": tensor for name, tensor in tensors.items()})
                return state_dict

            def saved_weight(self) -> Tensor:
                """The weight with the LoRAs of low rank that are loaded, appended to its rank."""
                weight = unwrap(self.weight)
                like = weight.scale if weight.smooth is None else weight.smooth
                low_rank = lora.branches(self.patches()[0], weight.shape, like).low_rank
                if not low_rank:
                    return self.weight
                if weight.proj_down is not None:
                    low_rank.insert(0, (weight.proj_down, weight.proj_up))
                down, up = (torch.cat(parts, dim=1) for parts in zip(*low_rank, strict=True))
                return with_low_rank(self.weight, down, up, self.bias)

            @contextlib.contextmanager
            def _without_functions(self):
                """While a function waits for a weight, core would dequantise it to call the function."""
                kept = self.weight_function, self.weight_lowvram_function
                self.weight_function, self.weight_lowvram_function = [], None
                try:
                    yield
                finally:
                    self.weight_function, self.weight_lowvram_function = kept

    return Weight4Ops


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers of `model` that are in 4 bits, by name."""
    return {name: module for name, module in model.named_modules() if is_weight4(getattr(module, "weight", None))}


def attach_patches(patcher, *_) -> None:
    """After a patcher has loaded its model: gives the 4-bit layers the patches that core believes to have baked in."""
    for name, layer in layers(patcher.model).items():
        key = f"{name}.weight"
        functions = [function for function in layer.weight_function if not isinstance(function, LowVramPatch)]
        if key in patcher.patches and layer.weight_lowvram_function is None:
            functions.insert(0, LowVramPatch(key, patcher.patches))
        layer.weight_function = functions


def drop_patches(patcher, unpatch_all: bool = True) -> None:
    """After a patcher has let go of its model: nothing of its patches stays in memory."""
    if unpatch_all:
        for layer in layers(patcher.model).values():
            layer.weight_function = [each for each in layer.weight_function if not isinstance(each, LowVramPatch)]


def refuse_lossy_saving(model) -> None:
    """Lets a BaseModel refuse to be saved with patches that a layer in 4 bits cannot hold."""
    save = model.state_dict_for_saving

    def checked(*args, **kwargs):
        for name, layer in layers(model).items():
            patches, functions = layer.patches()
            loras = lora.branches(patches, tuple(layer.weight.shape), layer.weight._params.scale)
            if loras.dense or loras.additive or functions:
                raise ValueError(f"{name}: a layer in 4 bits can be saved with LoRAs of low rank only")
        return save(*args, **kwargs)

    model.state_dict_for_saving = checked


class SavedCodes(torch.Tensor):
    """Codes on their way into a file. Core wraps what it saves in a Parameter that wants gradients, which integers
    refuse; these do not mind."""

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        return self


def _patches_among(functions) -> tuple[list[tuple], list[Callable]]:
    # By key: core appends what a layer has already when it moves the layer off the GPU.
    lowvram = {function.key: function for function in functions if isinstance(function, LowVramPatch)}
    patches = [
        patch
        for function in lowvram.values()
        for patch in function.prepared_patches or function.patches.get(function.key, [])
    ]
    others = [function for function in functions if function is not None and not isinstance(function, LowVramPatch)]
    return patches, others


def share_inputs(model: torch.nn.Module) -> None:
    """Tells layers that read one input in one way (q, k and v) of each other."""
    by_name = layers(model)
    for path in {layer.path for layer in by_name.values()}:
        weights = {name: unwrap(layer.weight) for name, layer in by_name.items() if layer.path == path}
        for name, sibling in siblings(weights, path).items():
            by_name[name].sibling = sibling
