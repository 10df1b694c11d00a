"""4-bit model files and folders: which format one is in, and reading it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...files import load_json, mapped, need_whole
from ..weight4 import Weight4
from . import comfy_quant, nunchaku
from .comfy_quant_markers import MARKER

Tensors = Mapping[str, Tensor]
Metadata = Mapping[str, str]

# The parts of a model as nunchaku published it before there were single files, and its settings.
FOLDER_PARTS = ("transformer_blocks.safetensors", "unquantized_layers.safetensors")
FOLDER_SETTINGS = ("config", "comfy_config")


class Reader(NamedTuple):
    """A format: its name, whether these tensors and metadata are in it, and how to read them. `read` takes the file's
    name too, for its messages."""

    name: str
    detect: Callable[[Tensors, Metadata], bool]
    read: Callable[[Tensors, Metadata, str], dict[str, Tensor | Weight4]]


def _comfy_quant(tensors: Tensors, metadata: Metadata, name: str) -> dict[str, Tensor | Weight4]:
    return nunchaku.from_diffusers(comfy_quant.read(tensors, metadata, name), name)


READERS = (
    Reader("nunchaku", nunchaku.detect, nunchaku.read),
    Reader("comfy_quant", comfy_quant.detect, _comfy_quant),
)


def read_quantised(path: str | Path) -> tuple[dict[str, Tensor | Weight4], dict[str, str]]:
    """The tensors, under ComfyUI's names, and the metadata of a 4-bit model: a file, or a folder of nunchaku's.

    `<layer>.weight` of a 4-bit layer is a Weight4, `<layer>.bias` its plain bias; all else is as in the file, mapped
    into memory. Raises ValueError naming the file, what was expected and what was found.
    """
    path = Path(path)
    tensors, metadata = _folder(path) if path.is_dir() else _file(path)
    for reader in READERS:
        if reader.detect(tensors, metadata):
            return reader.read(tensors, metadata, str(path)), metadata
    formats = " or ".join(reader.name for reader in READERS)
    raise ValueError(f"{path}: expected a 4-bit model ({formats}), found {_description(tensors)}")


def _description(tensors: Tensors) -> str:
    """What these tensors are, of which no reader knows the format."""
    if any(name.startswith("encoder.block.") and name.endswith(".qweight") for name in tensors):
        return "a T5 text encoder in 4 bits (AWQ), which ComfyUI cannot load; it has t5xxl in 8 and 16 bits"
    codes = [name for name, tensor in tensors.items() if tensor.dtype in (torch.int8, torch.uint8) and tensor.ndim > 1]
    if codes:
        return f"{codes[0]} in {tensors[codes[0]].dtype}, and no {MARKER} that says its format"
    return f"{len(tensors)} tensors and no 4-bit layer"


def _folder(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for part in FOLDER_PARTS:
        if not (path / part).is_file():
            raise ValueError(f"{path}: expected a folder with {' and '.join(FOLDER_PARTS)}, found no {part}")
        own, about = _file(path / part)
        tensors |= own
        metadata |= about
    for setting in FOLDER_SETTINGS:
        file = path / f"{setting}.json"
        if file.is_file():
            metadata[setting] = json.dumps(load_json(file, "the settings of a model"))
    return tensors, metadata


def _file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        need_whole(path)
        return mapped(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
