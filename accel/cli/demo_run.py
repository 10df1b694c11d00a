"""The demo's sampling: both graphs in one server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..attention.statistics import parse_line
from ..comfy.server import Server
from . import demo_model
from .demo_graph import graph, to_latent

PACK = Path(__file__).parents[2]
CHECKPOINT = "dit_accel_demo.safetensors"
LATENT = "frames.latent"


class Result(NamedTuple):
    """latent: fp32 [1, 48, T, h, w]. seconds: of the whole graph, warm. log: the numbers of our log line, or
    None where the node wrote none."""

    latent: Tensor
    seconds: float
    log: dict[str, Any] | None


def sample(
    comfyui: Path, base: Path, frames: Tensor, *, steps: int, top_p: float, fallback: str
) -> tuple[Result, Result]:
    """The dense and the sparse result for frames fp32 [T, 3, H, W] in 0..1, with one seed.

    base is an empty folder that the server may fill. fallback: what the node does where no kernel runs.
    """
    (base / "models" / "diffusion_models").mkdir(parents=True)
    (base / "input").mkdir()
    demo_model.save(base / "models" / "diffusion_models" / CHECKPOINT)
    # The empty tensor is how SaveLatent marks a latent that needs no scaling.
    latent = {"latent_tensor": to_latent(frames), "latent_format_version_0": torch.tensor([])}
    save_file(latent, base / "input" / LATENT)

    print("starting ComfyUI ...", flush=True)
    # Triton's interpreter, where the environment asks for it, would take hours.
    with Server(comfyui, base, [PACK], environment={"TRITON_INTERPRET": "0"}) as server:
        return (
            _run(server, "dense", steps, None),
            _run(server, "sparse", steps, {"budget": _budget(top_p), "fallback": fallback}),
        )


def _budget(top_p: float) -> dict[str, Any]:
    return {
        "preset": "custom",
        "top_p": top_p,
        "floor": 0.05,
        "max_density": 1.0,
        "dense_first": 0.0,
        "dense_last": 0.0,
        "dense_blocks": "",
        "min_tokens": 0,
    }


def _run(server: Server, name: str, steps: int, sparse: dict[str, Any] | None) -> Result:
    print(f"sampling {name} ...", flush=True)
    # A one-step run first: loading the model and compiling kernels are no part of the times.
    server.run(graph(CHECKPOINT, LATENT, f"warm-{name}", steps=1, sparse=sparse, seed=0))
    mark = server.mark()
    entry = server.run(graph(CHECKPOINT, LATENT, name, steps=steps, sparse=sparse))
    saved = entry["outputs"]["save"]["latents"][0]
    latent = load_file(server.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]
    moments = {event: data["timestamp"] for event, data in entry["status"]["messages"]}
    seconds = (moments["execution_success"] - moments["execution_start"]) / 1000
    return Result(latent.float(), seconds, parse_line(server.log_since(mark)))
