"""Running the demo's graph in a headless ComfyUI and reading its results back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ..attention import reasons
from ..attention.statistics import parse_line
from ..comfy.server import Server
from .demo_graph import graph

PACK = Path(__file__).parents[2]
# Calls that the budget keeps dense on purpose, and those that are no self-attention.
_MEANT_DENSE = (reasons.CROSS_ATTENTION, reasons.OUTSIDE_WINDOW, reasons.DENSE_BLOCK)


class Result(NamedTuple):
    """frames: fp32 [T, 3, H, W] in 0..1. latent: fp32 [1, 16, t, h, w]. seconds: of the whole graph, its model loaded.
    log: the numbers of our log line, or None where the node wrote none."""

    frames: Tensor
    latent: Tensor
    seconds: float
    log: dict[str, Any] | None

    def sparse_share(self) -> float:
        """Sparse calls over all self-attention calls that the budget did not keep dense itself, 0..1."""
        if not self.log:
            return 0.0
        failed = sum(count for reason, count in self.log["dense"].items() if reason not in _MEANT_DENSE)
        return self.log["sparse"] / max(self.log["sparse"] + failed, 1)


def sample(
    comfyui: Path, base: Path, patterns: Sequence[str], *, top_p: float, fallback: str, **settings: Any
) -> dict[str, Result]:
    """The result without our nodes, as "dense", and with each pattern, all with one seed.

    base is an empty folder that the server may fill. fallback: what the node does where no kernel runs. settings:
    what `graph` takes beside.
    """
    print("starting ComfyUI ...", flush=True)
    # Triton's interpreter, where the environment asks for it, would take hours.
    with Server(comfyui, base, [PACK], environment={"TRITON_INTERPRET": "0"}) as server:
        results = {"dense": _run(server, "dense", None, settings)}
        for pattern in patterns:
            sparse = {"budget": _budget(top_p), "pattern": pattern, "fallback": fallback}
            results[pattern] = _run(server, pattern, sparse, settings)
    return results


def _budget(top_p: float) -> dict[str, Any]:
    return {
        "preset": "custom",
        "top_p": top_p,
        "floor": 0.05,
        "max_density": 1.0,
        "dense_first": 0.2,
        "dense_last": 0.0,
        "dense_blocks": "0",
        "min_tokens": 0,
    }


def _run(server: Server, name: str, sparse: dict[str, Any] | None, settings: dict[str, Any]) -> Result:
    print(f"sampling {name} ...", flush=True)
    # A short run first: loading the model and compiling kernels are no part of the times. Its second step is sparse.
    server.run(graph(**{**settings, "steps": 2}, prefix=f"warm-{name}", sparse=sparse, seed=0))
    mark = server.mark()
    entry = server.run(graph(**settings, prefix=name, sparse=sparse))
    outputs = entry["outputs"]
    (latent,) = (_file(server, saved) for saved in outputs["save latent"]["latents"])
    frames = [np.asarray(Image.open(_file(server, saved))) for saved in outputs["save frames"]["images"]]
    moments = {event: data["timestamp"] for event, data in entry["status"]["messages"]}
    return Result(
        frames=torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255,
        latent=load_file(latent)["latent_tensor"].float().clone(),
        seconds=(moments["execution_success"] - moments["execution_start"]) / 1000,
        log=parse_line(server.log_since(mark)),
    )


def _file(server: Server, saved: dict[str, str]) -> Path:
    return server.base / "output" / saved["subfolder"] / saved["filename"]
