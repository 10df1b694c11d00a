"""Models in the quantised formats that ComfyUI itself knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def quantised(plain: Mapping[str, Tensor], layers: Iterable[str], quant_format: str) -> dict[str, Tensor]:
    """A state dict with the weights of `layers` in one of core's formats, quantised by core."""
    import comfy.quant_ops

    layout = comfy.quant_ops.QUANT_ALGOS[quant_format]["comfy_tensor_layout"]
    marker = torch.tensor(list(json.dumps({"format": quant_format}).encode()), dtype=torch.uint8)
    tensors = dict(plain)
    for layer in layers:
        key = f"{layer}.weight"
        weight = comfy.quant_ops.QuantizedTensor.from_float(tensors.pop(key).contiguous(), layout)
        tensors |= {**weight.state_dict(key), f"{layer}.comfy_quant": marker}
    return tensors
