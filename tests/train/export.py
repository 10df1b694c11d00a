"""Writes the trained networks as the files that ComfyUI loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from dit_accel.accel.cli.demo_graph import MODEL, PROMPT, VAE
from dit_accel.accel.comfy import conditioning_files
from dit_accel.accel.comfy.folders import BUNDLED, FOLDER
from dit_accel.accel.version import PACK_VERSION
from dit_accel.tests.train import clips, latents

LICENCE = "Apache-2.0; see MODEL_CARD.md"
TRAINING = BUNDLED / "training.json"


def vae(folder: Path) -> None:
    """Writes the autoencoder (fp16), its latents brought to scale."""
    state = torch.load(folder / "vae.pt")
    footage = [clips.read(folder / "clips", clip)[:33] for clip in clips.CLIPS if clip.prompt]
    weights = latents.scaled_vae(state["average"], footage)
    half = {name: value.half().contiguous() for name, value in weights.items()}
    _write(half, BUNDLED / "vae" / VAE)


def exported_vae() -> dict[str, Tensor]:
    """The weights that `vae` wrote, in fp32."""
    return {name: value.float() for name, value in load_file(BUNDLED / "vae" / VAE).items()}


def dit(folder: Path) -> None:
    """Writes the transformer (bf16), a conditioning file for every prompt and the empty one, and both curves."""
    state = torch.load(folder / "dit.pt")
    average = {name: value.bfloat16().contiguous() for name, value in state["average"].items()}
    prompts = average.pop("prompts")
    _write(average, BUNDLED / "diffusion_models" / MODEL)
    for name, prompt in zip((*clips.PROMPTS, "empty"), prompts, strict=True):
        conditioning_files.save(BUNDLED / FOLDER / PROMPT.format(name), [[prompt[None], {}]])
    curves = {name: _curve(folder / f"{name}.pt") for name in ("vae", "dit")}
    TRAINING.write_text(json.dumps(curves, indent=1) + "\n")


def _write(weights: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save(weights, metadata={"pack": PACK_VERSION, "licence": LICENCE}))
    print(f"{path.name}: {path.stat().st_size / 2**20:.2f} MiB")


def _curve(path: Path) -> dict[str, object]:
    """Steps, seconds, and some twenty points of the curve: [step, mean loss since the point before]."""
    state = torch.load(path)
    curve = state["curve"]
    width = max(1, len(curve) // 20)
    points = [
        [curve[end - 1][0], round(sum(loss for _, loss in curve[end - width : end]) / width, 4)]
        for end in range(width, len(curve) + 1, width)
    ]
    return {"steps": state["step"], "seconds": round(state["seconds"]), "curve": points}
