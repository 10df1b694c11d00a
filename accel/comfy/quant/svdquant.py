"""Loads a model with 4-bit weights as the ordinary ComfyUI model that it is a smaller copy of."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...quant.compute import card_of, choose, summary, usable
from ...quant.formats.comfy_quant_writer import bias_of
from ...quant.formats.reading import FOLDER_PARTS, read_quantised
from ...quant.weight4 import Weight4
from . import operations, patching, saving
from .weight4_layout import layers, wrap


def load(path: Path, compute: str = "auto", disable_dynamic: bool = False):
    """The ModelPatcher of a 4-bit diffusion model's file or folder.

    compute: the arithmetic of its layers, as compute.choose takes it. Raises ValueError naming the file when it is
    broken, not a 4-bit model, or of a model that ComfyUI does not know.
    """
    card = card_of(comfy.model_management.get_torch_device())
    usable(compute, card)
    if path.name in FOLDER_PARTS:
        path = path.parent
    tensors, metadata = read_quantised(path)
    chosen = Counter()

    def path_of(weight: Weight4) -> str:
        choice = choose(compute, weight, card)
        chosen[choice] += 1
        return choice.path

    dtype = _plain_dtype(tensors)
    try:
        patcher = comfy.sd.load_diffusion_model_state_dict(
            packed(tensors, dtype),
            model_options={"custom_operations": operations.operations(dtype, path_of)},
            metadata=metadata,
            disable_dynamic=disable_dynamic,
        )
    except RuntimeError as error:
        # torch's, when shapes do not fit.
        raise ValueError(f"{path}: {error}") from error
    if patcher is None:
        raise ValueError(f"{path}: expected a diffusion model that ComfyUI knows, found one that it cannot name")
    _need_all(path, tensors, patcher.model.diffusion_model)
    operations.share_inputs(patcher.model)
    saving.prepare_saving(patcher.model)
    patching.prepare_patching(patcher)
    patcher.cached_patcher_init = (load, (path, compute))
    logging.info("DiT Accel: %s: layers in 4 bits by arithmetic: %s", path.name, summary(chosen.elements()))
    return patcher


def _plain_dtype(tensors: dict[str, Tensor | Weight4]) -> torch.dtype:
    """The dtype of most numbers that are not quantised."""
    floats = (torch.float32, torch.float16, torch.bfloat16)
    plain = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and value.dtype in floats}
    return comfy.utils.weight_dtype(plain) or torch.bfloat16


def packed(tensors: dict[str, Tensor | Weight4], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors as core's modules load them."""
    return {
        name: wrap(value, bias_of(tensors, name.removesuffix(".weight")), dtype)
        if isinstance(value, Weight4)
        else value
        for name, value in tensors.items()
    }


def _need_all(path: Path, tensors: dict[str, Tensor | Weight4], model: torch.nn.Module) -> None:
    """Raises ValueError when a 4-bit layer of the file found no place, or a part of the model has weights of some of
    its layers only."""
    loaded = layers(model)
    wanted = {name.removesuffix(".weight") for name, value in tensors.items() if isinstance(value, Weight4)}
    homeless = [name for name in wanted if not any(name == own or name.endswith(f".{own}") for own in loaded)]
    if homeless:
        raise ValueError(f"{path}: {type(model).__name__} has no layer {min(homeless)}, which the file holds in 4 bits")
    linears = {name: module for name, module in model.named_modules() if hasattr(module, "in_features")}
    # Whole parts may be left out, such as the encoders in front of a model; core says so in the log.
    parts = {_part(name) for name, module in linears.items() if module.weight is not None}
    empty = [name for name, module in linears.items() if module.weight is None and _part(name) in parts]
    if empty:
        raise ValueError(f"{path}: expected weights of every layer of {type(model).__name__}, found none of {empty[0]}")


def _part(layer: str) -> str:
    return layer.partition(".")[0]
