"""LoRA on 4-bit layers: what the stock loaders patch a weight with, as branches beside the weight.

A weight in 4 bits takes no patch without being quantised again. A LoRA of low rank needs none: it is more rank of the
branch that the layer has anyway. Kinds whose effect on the output is a sum (LoHa, LoKr) run beside the layer, by core's
own formula; for all others the layer is dequantised in every call and patched as core patches any weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import comfy.lora
import torch
from comfy.model_patcher import LowVramPatch
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
    sorted_patches = Branches([], [], False)
    for patch in (Patch(*entry) for entry in patches):
        if patch.strength == 0 and patch.strength_model == 1:
            continue
        if patch.strength_model != 1 or patch.function is not None:
            return sorted_patches._replace(dense=True)
        if _is_low_rank(patch, shape):
            sorted_patches.low_rank.append(_low_rank(patch, shape, like))
        elif patch.offset is None and _is_additive(patch.value, shape):
            sorted_patches.additive.append(_additive(patch, like))
        else:
            return sorted_patches._replace(dense=True)
    return sorted_patches


def patched(weight: Tensor, patches: Sequence[tuple], key: str) -> Tensor:
    """The dense weight [N, K] with all patches, as core computes it; may change `weight`."""
    # A model that hooks load as a LoRA is the difference to the weight as it was.
    original = {key: [(weight.clone(),)]} if any(_is_model(patch[1]) for patch in patches) else None
    return comfy.lora.calculate_weight(patches, weight, key, intermediate_dtype=weight.dtype, original_weights=original)


def patches_among(functions: Sequence[Callable | None]) -> tuple[list[tuple], list[Callable]]:
    """The patches in a layer's weight functions, and the functions that are no patches."""
    # By key: core appends what a layer has already when it moves the layer off the GPU.
    lowvram = {(type(function), function.key): function for function in functions if _is_patch(function)}
    patches = [
        patch
        for function in lowvram.values()
        for patch in function.prepared_patches or function.patches.get(function.key, [])
    ]
    return patches, [function for function in functions if function is not None and not _is_patch(function)]


def _is_patch(function: Callable | None) -> bool:
    return isinstance(function, LowVramPatch)


def _is_model(value) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and value[0] == "model_as_lora"


def _is_low_rank(patch: Patch, shape: tuple[int, int]) -> bool:
    if not isinstance(patch.value, LoRAAdapter):
        return False
    up, down, _alpha, middle, dora, reshape = patch.value.weights
    if not (middle is None and dora is None and reshape is None and up.dim() == down.dim() == 2):
        return False
    # Of what does not fit, core says so and leaves it out.
    rows, columns = shape
    if patch.offset is not None:
        axis, _start, length = patch.offset
        rows, columns = (length, columns) if axis == 0 else (rows, length)
    return up.shape == (rows, down.shape[0]) and down.shape[1] == columns


def _is_additive(value, shape: tuple[int, int]) -> bool:
    if isinstance(value, LoHaAdapter):
        w1_up, w1_down, _alpha, w2_up, w2_down, t1, _t2, dora = value.weights
        fits = t1 is None and all(
            (up.shape[0], down.shape[1]) == tuple(shape) for up, down in ((w1_up, w1_down), (w2_up, w2_down))
        )
    elif isinstance(value, LoKrAdapter):
        w1, w2, _alpha, w1_up, w1_down, w2_up, w2_down, t2, dora = value.weights
        factors = ((w1, w1_up, w1_down), (w2, w2_up, w2_down))
        sizes = [(up.shape[0], down.shape[1]) if whole is None else whole.shape for whole, up, down in factors]
        fits = t2 is None and all(len(size) == 2 for size in sizes) and _kron(*sizes) == tuple(shape)
    else:
        return False
    # DoRA normalises the sum.
    return fits and dora is None


def _kron(a: Sequence[int], b: Sequence[int]) -> tuple[int, int]:
    return a[0] * b[0], a[1] * b[1]


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
