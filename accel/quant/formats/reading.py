"""4-bit model files and folders: which format one is in, and reading it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...files import load_json, mapped
from ..weight4 import Weight4
from . import comfy_quant, nunchaku

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


READERS = (
    Reader("nunchaku", nunchaku.detect, nunchaku.read),
    Reader("comfy_quant", comfy_quant.detect, comfy_quant.read),
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
    raise ValueError(f"{path}: expected a 4-bit model ({formats}), found {len(tensors)} tensors and no 4-bit layer")


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
        return mapped(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
