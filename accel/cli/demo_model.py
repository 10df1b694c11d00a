"""A small Wan 2.2 5B-style checkpoint with fixed random weights: it shows the plumbing, not picture quality.

Key names and shapes are those of the official checkpoints (Wan-AI/Wan2.2-TI2V-5B), so that ComfyUI's own
loader recognises it. Only the sizes are small, and the text width is that of ComfyUI's LotusConditioning
node, which gives a conditioning without a text encoder.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

DIM = 256
HEADS = 2
FFN = 512
LAYERS = 3
TEXT = 1024
TIME = 256
CHANNELS = 48
PATCH = (1, 2, 2)

# Sharp attention: large query and key norms make it depend on content, as in a trained model.
QUERY_KEY_NORM = 2.0


def state_dict(seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of the model, fp32, the same for the same seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _values(name, shape, generator) for name, shape in shapes().items()}


def save(path: Path, seed: int = 0) -> None:
    """Writes the checkpoint as safetensors; its metadata tells ComfyUI the text width."""
    config = {"transformer": {"text_dim": TEXT}}
    save_file(state_dict(seed), path, metadata={"config": json.dumps(config)})


def shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor."""
    pixels = PATCH[0] * PATCH[1] * PATCH[2]
    table = {"patch_embedding.weight": (DIM, CHANNELS, *PATCH), "patch_embedding.bias": (DIM,)}
    table |= _linear("text_embedding.0", TEXT, DIM) | _linear("text_embedding.2", DIM, DIM)
    table |= _linear("time_embedding.0", TIME, DIM) | _linear("time_embedding.2", DIM, DIM)
    table |= _linear("time_projection.1", DIM, 6 * DIM)
    for block in (f"blocks.{number}" for number in range(LAYERS)):
        table[f"{block}.modulation"] = (1, 6, DIM)
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for part in "qkvo":
                table |= _linear(f"{attention}.{part}", DIM, DIM)
            table[f"{attention}.norm_q.weight"] = table[f"{attention}.norm_k.weight"] = (DIM,)
        table[f"{block}.norm3.weight"] = table[f"{block}.norm3.bias"] = (DIM,)
        table |= _linear(f"{block}.ffn.0", DIM, FFN) | _linear(f"{block}.ffn.2", FFN, DIM)
    table["head.modulation"] = (1, 2, DIM)
    return table | _linear("head.head", DIM, pixels * CHANNELS)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if "norm" in name:
        is_query_or_key = name.endswith(("norm_q.weight", "norm_k.weight"))
        value = QUERY_KEY_NORM if is_query_or_key else float(name.endswith("weight"))
        return torch.full(shape, value)
    if name.endswith("modulation"):
        return noise * 0.3
    if name.endswith("bias"):
        return noise * 0.02
    return noise * noise[0].numel() ** -0.5
