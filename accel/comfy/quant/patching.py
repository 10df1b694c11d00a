"""How core's patches reach layers in 4 bits: as functions that run beside the layer, since no patch fits into codes.

Core bakes a patch into the weight where it can, hands it to the layer where it cannot (LowVramPatch), and writes those
that hooks schedule into the weights in place, forward by forward. Here every one of them is handed to the layer.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor

from . import lora
from .weight4_layout import layers

KEY = "dit_accel"


class ScheduledPatch(LowVramPatch):
    """What the hooks of a condition ask of a layer for this forward."""

    def __call__(self, weight: Tensor) -> Tensor:
        return lora.patched(weight, self.patches[self.key], self.key)


def prepare_patching(patcher: ModelPatcher) -> None:
    """Lets a patcher of a 4-bit model, and all of its clones, hand every patch to the layers."""
    patcher.set_attachments(KEY, {})
    for event, callback in (
        (CallbacksMP.ON_LOAD, _attach),
        (CallbacksMP.ON_DETACH, _detach),
        (CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES, _take_scheduled),
        (CallbacksMP.ON_PREPARE_STATE, lambda patcher, *_: _schedule(patcher, patcher.current_hooks)),
        (CallbacksMP.ON_APPLY_HOOKS, _schedule),
        (CallbacksMP.ON_CLEANUP, _give_back_scheduled),
    ):
        patcher.add_callback_with_key(event, KEY, callback)


def _attach(patcher: ModelPatcher, *_) -> None:
    """After a patcher has loaded its model: gives the 4-bit layers the patches that core believes to have baked in."""
    for name, layer in layers(patcher.model).items():
        key = f"{name}.weight"
        functions = [function for function in layer.weight_function if not isinstance(function, LowVramPatch)]
        if key in patcher.patches and layer.weight_lowvram_function is None:
            functions.insert(0, LowVramPatch(key, patcher.patches))
        layer.weight_function = functions


def _detach(patcher: ModelPatcher, unpatch_all: bool = True) -> None:
    """After a patcher has let go of its model: nothing of its patches stays in memory."""
    if unpatch_all:
        for layer in layers(patcher.model).values():
            layer.weight_function = [each for each in layer.weight_function if not isinstance(each, LowVramPatch)]


def _take_scheduled(patcher: ModelPatcher, *_) -> None:
    """Before a run: takes the hooks' patches of quantised weights from core, which would write them in place."""
    keys = {f"{name}.weight" for name in _quantised(patcher.model)}
    scheduled = patcher.get_attachment(KEY)
    for hook, patches in patcher.hook_patches.items():
        taken = {key: patches.pop(key) for key in keys & patches.keys()}
        if taken:
            scheduled[hook] = taken


def _give_back_scheduled(patcher: ModelPatcher) -> None:
    """After a run: nothing of its hooks stays with the layers, or in memory once core lets go of them."""
    _schedule(patcher, None)
    scheduled = patcher.get_attachment(KEY)
    for hook in scheduled.keys() & patcher.hook_patches.keys():
        patcher.hook_patches[hook].update(scheduled[hook])
    scheduled.clear()


def _schedule(patcher: ModelPatcher, hooks) -> None:
    """Hands the layers what these hooks ask for, and takes back what others asked for. hooks: core's HookGroup, or
    None."""
    scheduled = SimpleNamespace(hook_patches=patcher.get_attachment(KEY))
    if not scheduled.hook_patches:
        return
    patches = ModelPatcher.get_combined_hook_patches(scheduled, hooks)
    for name, layer in _quantised(patcher.model).items():
        functions = [function for function in layer.weight_function if not isinstance(function, ScheduledPatch)]
        if f"{name}.weight" in patches:
            functions.append(ScheduledPatch(f"{name}.weight", patches))
        layer.weight_function = functions


def _quantised(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers of `model` whose weight is in any quantised format, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), QuantizedTensor)
    }
