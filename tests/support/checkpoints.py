"""Tiny random video checkpoints that ComfyUI's own loader recognises.

`python -m dit_accel.tests.support.checkpoints COMFYUI FOLDER [NAME ...]` writes them as safetensors.
Key names and shapes are those of ComfyUI's classes, built on the meta device; values come from a fixed seed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from dit_accel.accel.comfy.embedded import import_comfyui

TEXT_WIDTH = 64
HEADS = 2
WIDTH = HEADS * 128

_WAN = {"dim": WIDTH, "ffn_dim": 256, "num_heads": HEADS, "num_layers": 2, "text_dim": TEXT_WIDTH}
_HUNYUAN = {
    "out_channels": 16,
    "context_in_dim": TEXT_WIDTH,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": HEADS,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "qkv_bias": True,
    "meanflow": False,
}
_HUNYUAN_1 = {
    **_HUNYUAN,
    "in_channels": 16,
    "vec_in_dim": 768,
    "patch_size": [1, 2, 2],
    "guidance_embed": True,
    "byt5": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
# 1.5: 32 latent channels, the same as image condition, one mask; only double blocks.
_HUNYUAN_15 = {
    **_HUNYUAN,
    "in_channels": 65,
    "out_channels": 32,
    "vec_in_dim": None,
    "patch_size": [1, 1, 1],
    "depth": 2,
    "depth_single_blocks": 0,
    "guidance_embed": False,
    "byt5": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
    "meanflow_sum": True,
}

# name -> (class in comfy.ldm, its settings, seed)
CHECKPOINTS = {
    "wan21_t2v": ("wan.model.WanModel", {**_WAN, "model_type": "t2v", "in_dim": 16}, 1),
    "wan22_inpaint_high": ("wan.model.WanModel", {**_WAN, "model_type": "t2v", "in_dim": 36}, 2),
    "wan22_inpaint_low": ("wan.model.WanModel", {**_WAN, "model_type": "t2v", "in_dim": 36}, 3),
    "wan21_vace": ("wan.model.VaceWanModel", {**_WAN, "in_dim": 16, "vace_layers": 1, "vace_in_dim": 96}, 4),
    "hunyuan_video": ("hunyuan_video.model.HunyuanVideo", _HUNYUAN_1, 5),
    "hunyuan_video_15": ("hunyuan_video.model.HunyuanVideo", _HUNYUAN_15, 6),
}
# Video self-attention calls of one forward (VACE: with one control video).
CALLS = {
    "wan21_t2v": 2,
    "wan22_inpaint_high": 2,
    "wan22_inpaint_low": 2,
    "wan21_vace": 3,
    "hunyuan_video": 2,
    "hunyuan_video_15": 2,
}

# Queries and keys are normalised; this scale of both makes the softmax peaked, as in trained models. With
# flat attention, good and bad choices of blocks could not be told apart.
_SHARPNESS = 2.0
# An untrained model amplifies rounding from step to step; a small output keeps that below the tolerances.
_OUTPUT = 0.5


def build(comfyui: Path, folder: Path, names=tuple(CHECKPOINTS)) -> None:
    """Writes `<name>.safetensors` for every name into folder, in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", __spec__.name, str(comfyui), str(folder), *names],
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def _tensors(shapes, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        random = torch.randn(shape, generator=generator)
        if name.endswith(("norm_q.weight", "norm_k.weight", "query_norm.weight", "key_norm.weight")):
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


def _main(comfyui: str, folder: str, *names: str) -> None:
    import_comfyui(Path(comfyui), "--cpu")
    import importlib

    import comfy.ops
    import safetensors.torch

    for name in names:
        path, settings, seed = CHECKPOINTS[name]
        module, kind = path.rsplit(".", 1)
        kind = getattr(importlib.import_module(f"comfy.ldm.{module}"), kind)
        model = kind(**settings, device="meta", operations=comfy.ops.disable_weight_init)
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        # The one width that ComfyUI does not read from the tensors of a Wan file.
        config = {key: value for key, value in settings.items() if key == "text_dim"}
        metadata = {"config": json.dumps({"transformer": config})}
        safetensors.torch.save_file(_tensors(shapes, seed), Path(folder, f"{name}.safetensors"), metadata)


if __name__ == "__main__":
    _main(*sys.argv[1:])
