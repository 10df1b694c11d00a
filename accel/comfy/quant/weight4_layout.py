"""Weight4 as one of ComfyUI's quantised tensors: core moves, streams, counts and saves it as it does its own.

Every tensor of the layer is a parameter of the layout, and so travels with the codes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from comfy_kitchen.tensor import QuantizedLayout, QuantizedTensor, register_layout_class
from comfy_kitchen.tensor.base import BaseLayoutParams
from torch import Tensor

from ...quant.formats.comfy_quant_writer import format_of, layer_parts
from ...quant.weight4 import INT4, Weight4, dequantise

NAME = "DitAccelWeight4Layout"
# Weight4's fields behind the codes, for torch.compile, which cannot look them up.
_FIELDS = tuple(field.name for field in fields(Weight4))[1:]


class Weight4Layout(QuantizedLayout):
    """Codes int8 [N, K / 2] with what weight4.Weight4 says of them."""

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """The other fields of Weight4. shift: fp32 [N], Weight4.shift of a layer that has one; saved_as: the format
        of comfy_quant_writer in which the layer is saved."""

        grid: str = INT4
        zero: Tensor | None = None
        channel_scale: Tensor | None = None
        smooth: Tensor | None = None
        proj_down: Tensor | None = None
        proj_up: Tensor | None = None
        unsigned_from: int | None = None
        shift: Tensor | None = None
        saved_as: str = ""

        def _tensor_fields(self) -> list[str]:
            return [field.name for field in fields(self) if isinstance(getattr(self, field.name), Tensor)]

    @classmethod
    def quantize(cls, tensor: Tensor, **options):
        raise NotImplementedError("a 4-bit layer cannot be quantised again from a plain weight")

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        return dequantise(_weight(qdata, params)).to(params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, ...]:
        return qtensor._qdata, *(getattr(qtensor._params, name) for name in qtensor._params._tensor_fields())

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        parts, _ = layer_parts(_weight(qdata, params), params.saved_as)
        return {name.removeprefix("weight"): tensor for name, tensor in parts.items()}


register_layout_class(NAME, Weight4Layout)


def wrap(weight: Weight4, bias: Tensor | None, dtype: torch.dtype) -> QuantizedTensor:
    """The weight of a layer with this bias as a tensor [N, K] that calls itself `dtype`."""
    given = {name: getattr(weight, name) for name in _FIELDS}
    given["shift"] = None if weight.unsigned_from is None else weight.shift
    given["saved_as"] = format_of(weight, bias)
    params = Weight4Layout.Params(orig_dtype=dtype, orig_shape=weight.shape, **given)
    return QuantizedTensor(weight.codes, NAME, params)


def with_low_rank(tensor: QuantizedTensor, down: Tensor, up: Tensor, bias: Tensor | None) -> QuantizedTensor:
    """What `wrap` made with another low-rank branch, which no shift depends on."""
    saved_as = format_of(replace(unwrap(tensor), proj_down=down, proj_up=up), bias)
    params = replace(tensor._params, proj_down=down, proj_up=up, saved_as=saved_as)
    return QuantizedTensor(tensor._qdata, NAME, params)


def is_weight4(tensor) -> bool:
    return isinstance(tensor, QuantizedTensor) and tensor._layout_cls == NAME


def unwrap(tensor: QuantizedTensor) -> Weight4:
    """The Weight4 of what `wrap` made, wherever core has moved it."""
    return _weight(tensor._qdata, tensor._params)


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers of `model` that are in 4 bits, by name."""
    return {name: module for name, module in model.named_modules() if is_weight4(getattr(module, "weight", None))}


def _weight(qdata: Tensor, params: Weight4Layout.Params) -> Weight4:
    return Weight4(qdata, *(getattr(params, name) for name in _FIELDS))
