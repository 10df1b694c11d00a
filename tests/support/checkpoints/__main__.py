"""Writes checkpoints: key names and shapes are those of ComfyUI's classes, built on the meta device."""

import importlib
import json
import sys
from pathlib import Path

from dit_accel.accel.headless.embedded import import_comfyui
from dit_accel.tests.support.checkpoints import CHECKPOINTS

# Queries and keys are normalised; this scale of both makes the softmax peaked, as in trained models. With
# flat attention, good and bad choices of blocks could not be told apart.
_SHARPNESS = 2.0
_QUERY_AND_KEY_NORMS = tuple(
    f"{name}.weight" for name in ("norm_q", "norm_k", "q_norm", "k_norm", "query_norm", "key_norm")
)
# An untrained model amplifies rounding from step to step; a small output keeps that below the tolerances.
_OUTPUT = 0.5


def _tensors(shapes, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        random = torch.randn(shape, generator=generator)
        if name.endswith(_QUERY_AND_KEY_NORMS):
            tensors[name] = torch.full(shape, _SHARPNESS)
        elif name.endswith("modulation"):
            tensors[name] = random * 0.2
        elif len(shape) > 1:
            gain = _OUTPUT if name.endswith(("head.head.weight", "final_layer.linear.weight")) else 1.0
            tensors[name] = random * gain / random[0].numel() ** 0.5
        elif name.endswith(".weight"):
            tensors[name] = torch.ones(shape)
        else:
            tensors[name] = random * 0.02
    return tensors


def _write(checkpoint, path: Path) -> None:
    import comfy.ops
    import safetensors.torch

    module, kind = checkpoint.network.rsplit(".", 1)
    network = getattr(importlib.import_module(f"comfy.ldm.{module}"), kind)
    model = network(**checkpoint.settings, device="meta", operations=comfy.ops.disable_weight_init)
    state = model.state_dict().items()
    shapes = {key: tuple(value.shape) for key, value in state if not key.startswith(checkpoint.without)}
    metadata = {"config": json.dumps({"transformer": checkpoint.config})}
    safetensors.torch.save_file(_tensors(shapes, checkpoint.seed), path, metadata)


def _main(comfyui: str, folder: str, *names: str) -> None:
    import_comfyui(Path(comfyui), "--cpu")
    for name in names or CHECKPOINTS:
        _write(CHECKPOINTS[name], Path(folder, f"{name}.safetensors"))


if __name__ == "__main__":
    _main(*sys.argv[1:])
