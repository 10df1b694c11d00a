"""LoRA on 4-bit layers: what the stock loaders patch a weight with, as branches beside the weight.

A weight in 4 bits takes no patch without being quantised again. A LoRA of low rank needs none: it is more rank of the
branch that the layer has anyway. Kinds whose effect on the output is a sum (LoHa, LoKr) run beside the layer, by core's
own formula; for all others the layer is dequantised in every call and patched as core patches any weight.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import comfy.lora
import torch
from comfy.weight_adapter.loha import LoHaAdapter
from comfy.weight_adapter.lokr import LoKrAdapter
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor


class Patch(NamedTuple):
    """One entry of ModelPatcher.patches, in core's order."""

    strength: float
    value: Any
    strength_model: float
    offset: tuple[int, int, int] | None
    function: Any


class Branches(NamedTuple):
    """low_rank: pairs (down [K, r], up [N, r]) to append; additive: adapters whose h(x) is added to the output;
    dense: there are patches of other kinds, and the weight itself must be patched."""

    low_rank: list[tuple[Tensor, Tensor]]
    additive: list[Any]
    dense: bool


def branches(patches: Sequence[tuple], shape: tuple[int, int], like: Tensor) -> Branches:
    """What `patches` mean for a weight [N, K], on the device and in the dtype of `like`."""
    found = Branches([], [], False)
    for patch in (Patch(*entry) for entry in patches):
        if patch.strength == 0 and patch.strength_model == 1:
            continue
        if patch.strength_model != 1 or patch.function is not None:
            return found._replace(dense=True)
        if _is_low_rank(patch.value):
            found.low_rank.append(_low_rank(patch, shape, like))
        elif patch.offset is None and _is_additive(patch.value):
            found.additive.append(_additive(patch, like))
        else:
            return found._replace(dense=True)
    return found


def patched(weight: Tensor, patches: Sequence[tuple], key: str) -> Tensor:
    """The dense weight [N, K] with all patches, as core computes it; may change `weight`."""
    return comfy.lora.calculate_weight(patches, weight, key, intermediate_dtype=weight.dtype)


def _is_low_rank(value) -> bool:
    if not isinstance(value, LoRAAdapter):
        return False
    up, down, _alpha, middle, dora, reshape = value.weights
    return middle is None and dora is None and reshape is None and up.dim() == down.dim() == 2


def _is_additive(value) -> bool:
    # The last field is DoRA's, which normalises the sum.
    return isinstance(value, (LoHaAdapter, LoKrAdapter)) and value.weights[-1] is None


def _low_rank(patch: Patch, shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    up, down, alpha, *_ = patch.value.weights
    scale = patch.strength * (1.0 if alpha is None else alpha / down.shape[0])
    up = (up.to(like.device).float() * scale).to(like.dtype)
    down = down.to(like.device, like.dtype).T
    if patch.offset is not None:
        axis, start, length = patch.offset
        if axis == 0:
            up = _placed(up, start, length, shape[0])
        else:
            down = _placed(down, start, length, shape[1])
    return down, up


def _placed(part: Tensor, start: int, length: int, whole: int) -> Tensor:
    """Rows [length, r] at `start` among zeros [whole, r]."""
    return torch.nn.functional.pad(part, (0, 0, start, whole - start - length))


def _additive(patch: Patch, like: Tensor):
    # A copy: two layers' strengths, or two LoRAs of one file, must not meet in one object.
    adapter = copy.copy(patch.value)
    adapter.weights = tuple(
        value.to(like.device, like.dtype) if isinstance(value, Tensor) else value for value in patch.value.weights
    )
    adapter.multiplier, adapter.is_conv = patch.strength, False
    return adapter
