"""Judges the exported files on frames that were never trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from dit_accel.accel.cli.demo_graph import MODEL, PROMPT, VAE
from dit_accel.accel.comfy import conditioning_files
from dit_accel.accel.comfy.folders import BUNDLED, FOLDER
from dit_accel.accel.report.metrics import psnr
from dit_accel.tests.train import clips, latents
from dit_accel.tests.train.core import make_dit, make_vae
from dit_accel.tests.train.dit import velocity_error
from dit_accel.tests.train.export import TRAINING

HEIGHT, WIDTH = 192, 320
BUCKETS = ("192x112x33", "320x192x33")
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


def write(folder: Path, device: torch.device) -> None:
    """Adds "quality" to the curves' file and prints it."""
    report = json.loads(TRAINING.read_text())
    report["quality"] = {"vae_psnr_db": _reconstruction(folder, device), "dit_error": _denoising(folder, device)}
    text = json.dumps(report, indent=1) + "\n"
    TRAINING.write_text(text)
    print(json.dumps(report["quality"], indent=1))


def _load(model: nn.Module, path: Path, device: torch.device) -> nn.Module:
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return model.to(device).eval().requires_grad_(False)


def _reconstruction(folder: Path, device: torch.device) -> dict[str, float]:
    """PSNR in dB by clip, over its held-out frames, in bf16 arithmetic."""
    vae = _load(make_vae(), BUNDLED / "vae" / VAE, device)
    found = {}
    for clip in clips.CLIPS:
        frames = clips.read(folder / "clips", clip)[clip.held_out :][:33]
        frames = clips.resize(frames[: (len(frames) - 1) // 4 * 4 + 1], HEIGHT, WIDTH) if len(frames) else frames
        if not len(frames):
            continue
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            decoded = vae.decode(latents.encode(vae, frames).to(device)).float().cpu()
        decoded = ((decoded[0].transpose(0, 1) + 1) / 2).clamp(0, 1)
        found[clip.name] = round(psnr(frames / 255, decoded), 2)
    return found


def _denoising(folder: Path, device: torch.device) -> dict[str, Any]:
    """By size and prompt, the mean squared error of the velocity over noise levels on held-out windows, divided by that
    of the mean velocity."""
    model = _load(make_dit(), BUNDLED / "diffusion_models" / MODEL, device)
    table = torch.load(folder / "latents.pt")
    found: dict[str, Any] = {}
    for bucket in BUCKETS:
        for name, windows in table[bucket].items():
            clean = windows["held_out"].float().to(device)
            ((prompt, _),) = conditioning_files.load(BUNDLED / FOLDER / PROMPT.format(name))
            prompt = prompt.float().to(device).expand(len(clean), -1, -1)
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(device)
            with torch.no_grad():
                errors = [
                    velocity_error(model, prompt, clean, torch.full((len(clean),), sigma, device=device), noise).mean()
                    for sigma in SIGMAS
                ]
            of_the_mean = (noise - clean).var()
            found.setdefault(bucket, {})[name] = round((torch.stack(errors).mean() / of_the_mean).item(), 3)
    return found
