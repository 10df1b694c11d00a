"""Running a model on encoded frames and keeping what its attention saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dit_accel.accel.bench.captures import Capture
from dit_accel.accel.bench.drawn import drawn_frames
from dit_accel.accel.cli.table import table
from dit_accel.accel.comfy import conditioning_files
from dit_accel.accel.headless.attention_inputs import Recorder
from dit_accel.accel.headless.clip import read_frames
from dit_accel.accel.headless.embedded import device_arguments, import_comfyui
from dit_accel.accel.headless.loading import VideoEncoder, load_diffusion_model
from dit_accel.accel.headless.sampling import denoise_once
from dit_accel.tests.bench.concentration import BLOCK, key_block_share

SEED = 0
# Latent pixels in a token's side, and frames in a latent frame after the first: those of the Wan family.
PATCH = 2
FRAMES_PER_LATENT = 4


def capture(
    comfyui: Path,
    files: Mapping[str, Path],
    *,
    grid: tuple[int, int, int],
    blocks: Sequence[int] | None,
    heads: Sequence[int] | None,
    sigmas: Sequence[float],
) -> list[Capture]:
    """The calls of one forward at each noise level, on the first frames of a clip encoded to `grid` (T, H, W) tokens;
    on a GPU, if there is one, in the dtype that ComfyUI chooses there.

    files: of the model, its autoencoder ("vae"), a conditioning and the clip, without which one is drawn. blocks,
    heads: what to keep, None for all. Raises ValueError when the clip is too short, the model is of no known family, or
    it has no such block or head.
    """
    import_comfyui(comfyui, *device_arguments())
    t, h, w = grid
    length = FRAMES_PER_LATENT * (t - 1) + 1
    recorder = Recorder(blocks, heads)
    captures = []
    with torch.inference_mode():
        encode = VideoEncoder(files["vae"])
        pixels = PATCH * encode.pixels
        latent = encode(_frames(files.get("clip"), length, h * pixels, w * pixels))
        model = recorder.attach(load_diffusion_model(files["model"]))
        positive = conditioning_files.load(files["conditioning"])
        for sigma in sigmas:
            denoise_once(model, positive, latent, sigma, SEED)
            captures += [Capture(q, k, v, recorder.layout, block, sigma) for block, q, k, v in recorder.calls]
    missing = set(blocks or ()) - {capture.block for capture in captures}
    if missing:
        raise ValueError(f"blocks: the model has no video self-attention in {sorted(missing)}")
    return captures


def _frames(clip: Path | None, length: int, height: int, width: int) -> torch.Tensor:
    if clip is None:
        return drawn_frames(length, height, width)
    return read_frames(clip, range(length), height, width)


def show(captures: Sequence[Capture]) -> str:
    """A table of the captured calls: how concentrated each is."""
    # At least sixteen blocks, so that a share says something.
    tokens = max(1, min(BLOCK, captures[0].layout.total // 16))
    header = ("block", "sigma", f"share of key blocks ({tokens} tokens) for 90 % of the mass")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for capture in captures:
        share = key_block_share(capture.q.to(device), capture.k.to(device), block=tokens)
        rows.append((f"{capture.block}", f"{capture.sigma}", f"{share:.3f}"))
    return table(header, rows)
