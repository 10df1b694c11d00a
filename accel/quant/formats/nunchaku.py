"""nunchaku's checkpoints (SVDQuant, arXiv 2411.05007) of FLUX.1, Qwen-Image and Z-Image, as ComfyUI's models want
them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...files import parse_json
from ..joining import Linear
from ..weight4 import Weight4
from .diffusers_names import MARKS, SPLIT
from .nunchaku_layers import OPTIONAL, PARTS, read_awq, read_svdquant
from .nunchaku_names import MODELS, Blocks, Model, Move, Source

# What programs put in front of the names of a network's tensors.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.")
LAYER_TENSORS = ("weight", "qweight", "wscales", "wzeros", *OPTIONAL)

Layers = dict[str, dict[str, Tensor | Weight4]]
Part = TypeVar("Part", Tensor, Tensor | Weight4)


def detect(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether these are the tensors of a nunchaku checkpoint."""
    return any(
        name.endswith(".qweight") and tensor.dtype == torch.int8 and f"{name.removesuffix('qweight')}wscales" in tensors
        for name, tensor in tensors.items()
    )


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> dict[str, Tensor | Weight4]:
    """The model with ComfyUI's names: `<layer>.weight` of a 4-bit layer is a Weight4, `<layer>.bias` its plain bias
    (fp32 where the file's stands for more than the bias), all else is as in the file.

    metadata: the file's, with the texts of `config` and `comfy_config` (JSON), `model_class` where the file has them.
    name: of the file, for messages. Raises ValueError naming file, layer and tensor.
    """
    try:
        network = _without_prefix(tensors)
        model = _model(network, metadata)
        split = any(name.endswith(f"{mark}.qweight") for mark in MARKS for name in network)
        result = _in_comfyui(network, model, SPLIT[model.name] if split else model.blocks)
        config = _json(metadata, "config")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    for setting, marker in model.markers.items():
        if config.get(setting):
            result[marker] = torch.empty(0)
    return result


def from_diffusers(tensors: Mapping[str, Tensor | Weight4], name: str) -> dict[str, Tensor | Weight4]:
    """The tensors of any file, 4-bit weights as Weight4, with ComfyUI's names where those are diffusers' and another
    program's q, k and v are one layer in ComfyUI. Raises ValueError as `read` does."""
    network = _without_prefix(tensors)
    for model in MODELS:
        blocks = SPLIT[model.name]
        joined = [source.name for each in blocks.values() for move in each.moves for source in move.sources[1:]]
        if model.mark in network and any(key.endswith(f".{source}.weight") for key in network for source in joined):
            try:
                return _in_comfyui(network, model, blocks)
            except ValueError as error:
                raise ValueError(f"{name}: under diffusers' names: {error}") from error
    return dict(tensors)


def _without_prefix(tensors: Mapping[str, Part]) -> Mapping[str, Part]:
    """The network's tensors alone, under their own names."""
    blocks = {f"{kind}.0." for model in MODELS for kind in model.blocks}
    for prefix in ("", *PREFIXES):
        if any(name.startswith(f"{prefix}{block}") for name in tensors for block in blocks):
            return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return tensors


def _in_comfyui(
    tensors: Mapping[str, Tensor | Weight4], model: Model, blocks: Mapping[str, Blocks]
) -> dict[str, Tensor | Weight4]:
    """The tensors with ComfyUI's names, which `blocks` knows of the model's lists of blocks."""
    if model.width not in tensors:
        raise ValueError(f"expected a tensor {model.width} in a file of {model.name}, found none")
    if len(tensors[model.width].shape) != 2:
        raise ValueError(f"{model.width}: expected a matrix, found {list(tensors[model.width].shape)}")
    width = tensors[model.width].shape[0]
    layers, result = _by_layer(tensors)
    for prefix, layers_of_block, target, moves in _blocks(layers, model.name, blocks):
        produced = _move_all(prefix, layers_of_block, f"{target}.", moves, width)
        for move in moves:
            for name in move.targets:
                if f"{target}.{name}.weight" not in produced:
                    sources = " and ".join(prefix + source.name for source in move.sources)
                    raise ValueError(f"expected {sources} for ComfyUI's {target}.{name}, found no such layer")
        result |= produced
    return result | _move_all("", layers, "", model.outside, width)


def _model(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Model:
    """The model by the file's metadata, else by the names in it."""
    classes = (
        metadata.get("model_class"),
        _json(metadata, "comfy_config").get("model_class"),
        _json(metadata, "config").get("_class_name"),
    )
    for model in MODELS:
        if any(name in model.classes for name in classes):
            return model
    for model in MODELS:
        if model.mark in tensors:
            return model
    names = ", ".join(model.name for model in MODELS)
    actual = ", ".join(sorted({str(name) for name in classes if name})) or "no name and none of their tensors"
    raise ValueError(f"expected a model of {names}, found {actual}")


def _json(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = parse_json(metadata.get(key, "{}"))
    except ValueError as error:
        raise ValueError(f"metadata {key}: expected JSON, found something else ({error})") from error
    return value if isinstance(value, dict) else {}


def _by_layer(tensors: Mapping[str, Tensor | Weight4]) -> tuple[Layers, dict[str, Tensor | Weight4]]:
    """Tensors of linear layers and norms by layer, under one engine's names; and all others."""
    layers: Layers = defaultdict(dict)
    others: dict[str, Tensor | Weight4] = {}
    quantised = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        part = PARTS.get(part, part)
        if layer in quantised or part in LAYER_TENSORS:
            layers[layer][part] = tensor
        else:
            others[name] = tensor
    return layers, others


def _blocks(
    layers: Layers, model: str, lists: Mapping[str, Blocks]
) -> Iterable[tuple[str, Layers, str, tuple[Move, ...]]]:
    """Takes the blocks out of `layers`: each with its name in the file, its layers, its name in ComfyUI, its moves."""
    numbered: dict[str, dict[int, Layers]] = defaultdict(lambda: defaultdict(dict))
    for name in list(layers):
        parts = name.split(".", 2)
        # Of thousands of digits Python makes no number: such a name is left over, and refused as that.
        if parts[0] in lists and len(parts) == 3 and parts[1].isdecimal() and len(parts[1]) < 10:
            own = lists[parts[0]].aliases.get(parts[2], parts[2])
            numbered[parts[0]][int(parts[1])][own] = layers.pop(name)
    for kind, blocks in lists.items():
        if not numbered[kind]:
            raise ValueError(f"expected blocks {kind}.0 and on in a file of {model}, found none")
        last = max(numbered[kind])
        for number in range(last + 1):
            if number not in numbered[kind]:
                raise ValueError(f"expected blocks {kind}.0 to {kind}.{last}, found no {kind}.{number}")
            yield f"{kind}.{number}.", numbered[kind][number], f"{blocks.name}.{number}", blocks.moves


def _move_all(
    prefix: str, layers: Layers, target: str, moves: Iterable[Move], width: int
) -> dict[str, Tensor | Weight4]:
    """The moves done on the layers of a block, and what no move takes under its own name."""
    result: dict[str, Tensor | Weight4] = {}
    for move in moves:
        missing = [source.name for source in move.sources if source.name not in layers]
        if len(missing) == len(move.sources):
            continue
        if missing:
            raise ValueError(f"{prefix}{missing[0]}: expected this layer beside {prefix}{move.sources[0].name}")
        linears = move.convert(
            [_linear(prefix + source.name, layers.pop(source.name), source, width) for source in move.sources]
        )
        for name, linear in zip(move.targets, linears, strict=True):
            result[f"{target}{name}.weight"] = linear.weight
            if linear.bias is not None:
                result[f"{target}{name}.bias"] = linear.bias
    for layer, parts in layers.items():
        if "qweight" in parts:
            raise ValueError(f"{prefix}{layer}: expected no 4-bit layer of this name, found one")
        for part in parts.keys() - {"weight", "bias"}:
            raise ValueError(f"{prefix}{layer}.{part}: expected {prefix}{layer}.qweight beside it, found none")
        result |= {f"{target}{layer}.{part}": tensor for part, tensor in parts.items()}
    return result


def _linear(layer: str, parts: Mapping[str, Tensor | Weight4], source: Source, width: int) -> Linear:
    packed = {part: tensor for part, tensor in parts.items() if isinstance(tensor, Tensor)}
    if "qweight" not in packed:
        if "weight" not in parts:
            raise ValueError(f"{layer}: expected {layer}.qweight or {layer}.weight, found only {', '.join(parts)}")
        return Linear(layer, parts["weight"], packed.get("bias"))
    outputs, inputs = (None if size is None else size * width for size in (source.outputs, source.inputs))
    if packed["qweight"].dtype == torch.int32:
        return read_awq(layer, packed, (outputs, inputs), source.chunks)
    return read_svdquant(layer, packed, (outputs, inputs), source.unsigned)
