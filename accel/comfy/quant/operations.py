"""The operations of a 4-bit model: ComfyUI's mixed-precision ones, whose Linear also takes a Weight4.

Layers that are not in 4 bits, and those in formats that core knows, are core's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import comfy.float
import comfy.ops
import torch
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor

from ...quant.linear import quantised_linear
from ...quant.shared import siblings
from ...quant.weight4 import Weight4
from . import lora, saving
from .weight4_layout import is_weight4, layers, unwrap


def operations(dtype: torch.dtype, choose: Callable[[Weight4], str]) -> type:
    """Operations for BaseModel's `custom_operations`. dtype: of the layers that are not quantised; choose: the
    arithmetic of a 4-bit layer, one of compute.PATHS."""
    # As core's own loader asks for them: a format of core's that this device lacks is computed on plain weights.
    mixed = SimpleNamespace(quant_config={"mixed_ops": True})
    core = comfy.ops.pick_operations(None, dtype, model_config=mixed)

    class Weight4Ops(core):
        class Embedding(saving.NamesAttributes, core.Embedding):
            pass

        class MoEExperts(saving.NamesAttributes, core.MoEExperts):
            pass

        class Linear(saving.NamesAttributes, core.Linear):
            weight_lowvram_function = None
            sibling = None

            def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
                weight = state_dict.get(f"{prefix}weight")
                is_ours = is_weight4(weight)
                if not is_ours:
                    super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
                    weight = self.weight  # of any shape, as core takes it
                problem = _misfit(weight, (self.out_features, self.in_features))
                if problem:
                    errors.append(f"{prefix}weight: {problem}")
                if problem or not is_ours:
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
                        shift=weight._params.shift,
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

            def patches(self) -> tuple[list[tuple], list[Callable]]:
                """What LoRA loaders ask of the weight, and what other code does."""
                return lora.patches_among((self.weight_lowvram_function, *self.weight_function))

            def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **kwargs):
                """Core sets what it has patched, or asks for it. A 4-bit weight stays as it is: its patches run beside
                it (patching.py)."""
                if is_weight4(self.weight):
                    return saving.weight_to_read(self, weight) if return_weight else None
                if inplace_update and not isinstance(self.weight, QuantizedTensor):
                    # Hooks write plain weights in place, which core's own mixed-precision layers refuse.
                    self.weight.data.copy_(comfy.float.stochastic_rounding(weight, self.weight.dtype, seed=seed or 0))
                    return None
                return super().set_weight(weight, inplace_update, seed, return_weight, **kwargs)

            def state_dict(self, *args, destination=None, prefix="", **kwargs):
                if saving.asks_for_attributes(prefix) or not is_weight4(self.weight):
                    return super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
                state_dict = {} if destination is None else destination
                state_dict.update({f"{prefix}{name}": tensor for name, tensor in saving.file_parts(self).items()})
                return state_dict

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


def share_inputs(model: torch.nn.Module) -> None:
    """Tells layers that read one input in one way (q, k and v) of each other."""
    by_name = layers(model)
    for path in {layer.path for layer in by_name.values()}:
        weights = {name: unwrap(layer.weight) for name, layer in by_name.items() if layer.path == path}
        for name, sibling in siblings(weights, path).items():
            by_name[name].sibling = sibling


def _misfit(weight: Tensor | None, shape: tuple[int, int]) -> str:
    """What is wrong with a layer's weight in any format, or nothing; the layer may have none."""
    if weight is None:
        return ""
    stored, allowed = weight, [shape]
    if isinstance(weight, QuantizedTensor) and not is_weight4(weight):
        # Core says itself that the weight has the layer's shape: what counts are the format's bytes.
        stored, layout = weight._qdata, weight.layout_cls
        padded = getattr(layout, "get_storage_shape", None)
        allowed = [padded(shape)] if padded else [shape, (shape[0], shape[1] // 2)]
    actual = tuple(stored.shape)
    return "" if actual in allowed else f"expected shape {shape}, found {actual}"
