"""Models in the quantised formats that ComfyUI itself knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from dit_accel.accel.quant.formats.comfy_quant_markers import MARKER, marker


def quantised(plain: Mapping[str, Tensor], layers: Iterable[str], quant_format: str) -> dict[str, Tensor]:
    """A state dict with the weights of `layers` in one of core's formats, quantised by core."""
    import comfy.quant_ops

    layout = comfy.quant_ops.QUANT_ALGOS[quant_format]["comfy_tensor_layout"]
    tensors = dict(plain)
    for layer in layers:
        key = f"{layer}.weight"
        weight = comfy.quant_ops.QuantizedTensor.from_float(tensors.pop(key).contiguous(), layout)
        tensors |= {**weight.state_dict(key), f"{layer}{MARKER}": marker({"format": quant_format})}
    return tensors
