"""What a comfy_quant file says about its layers: JSON beside each layer's tensors, in the file's header, or in both.

`<layer>.comfy_quant` is JSON text as a uint8 tensor; the header's `_quantization_metadata` is
{"format_version": "1.0", "layers": {layer: the same JSON}} (ComfyUI core, comfy.utils.convert_old_quants).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...files import JSON_LIMIT, parse_json
from ...messages import short
from .checks import expect

MARKER = ".comfy_quant"
HEADER = "_quantization_metadata"
# Core looks a header's layers up after it stripped one of these from the tensors' names.
_PREFIXES = ("", "model.diffusion_model.", "model.model.", "net.")

Config = dict[str, Any]


def read_markers(tensors: Mapping[str, Tensor], name: str) -> dict[str, Config]:
    """The JSON beside each layer, by layer. Raises ValueError naming the file `name`, layer and tensor."""
    configs = {}
    for key, tensor in tensors.items():
        if key.endswith(MARKER):
            where = f"{name}: {key}"
            expect(where, tensor, (torch.uint8,), None)
            text = tensor[: JSON_LIMIT + 1].numpy().tobytes()
            configs[key.removesuffix(MARKER)] = _config(where, _parse(where, text))
    return configs


def read_header(metadata: Mapping[str, str], keys: Iterable[str], name: str) -> dict[str, Config]:
    """The header's JSON for each layer, by the layer's name among the tensors `keys`. Raises ValueError."""
    if HEADER not in metadata:
        return {}
    where = f"{name}: {HEADER}"
    header = _parse(where, metadata[HEADER])
    if not isinstance(header, dict) or not isinstance(header.get("layers"), dict):
        raise ValueError(f"{where}: expected an object with `layers`, found {short(header)}")
    version = header.get("format_version", "1.0")
    if version != "1.0":
        raise ValueError(f"{where}: expected format_version 1.0, found {short(version)}")
    known = set(keys)
    configs = {}
    for layer, config in header["layers"].items():
        names = [prefix + layer for prefix in _PREFIXES if f"{prefix}{layer}.weight" in known]
        configs[names[0] if names else layer] = _config(f"{where}: {layer}", config)
    return configs


def marker(config: Config) -> Tensor:
    """`config` as it stands beside a layer: uint8 [bytes]."""
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def header(configs: Mapping[str, Config]) -> dict[str, str]:
    """File metadata for all layers."""
    return {HEADER: json.dumps({"format_version": "1.0", "layers": dict(sorted(configs.items()))})}


def _parse(where: str, text: str | bytes) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, found {short(text)} ({error})") from error


def _config(where: str, config: object) -> Config:
    if not isinstance(config, dict) or not isinstance(config.get("format"), str):
        raise ValueError(f"{where}: expected an object that names a `format`, found {short(config)}")
    return config
