"""Running the demo's graph in a headless ComfyUI and reading its results back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ..attention import reasons
from ..attention.account.run_summary import parse_line
from ..headless.server import Server
from .demo_graph import graph

PACK = Path(__file__).parents[2]
# Calls that the budget keeps dense on purpose, and those that are no self-attention.
_MEANT_DENSE = (reasons.CROSS_ATTENTION, reasons.OUTSIDE_WINDOW, reasons.DENSE_BLOCK)

BUDGET = {
    "preset": "custom",
    "top_p": 0.9,
    "floor": 0.05,
    "max_density": 1.0,
    "dense_first": 0.2,
    "dense_last": 0.0,
    "dense_blocks": "0",
    "min_tokens": 0,
}


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


class Sampler:
    """Samples the demo's graph in a headless ComfyUI; a context, which ends the server.

    base is an empty folder that the server may fill.
    """

    def __init__(self, comfyui: Path, base: Path) -> None:
        # Triton's interpreter, where the environment asks for it, would take hours.
        self._server = Server(comfyui, base, [PACK], environment={"TRITON_INTERPRET": "0"})

    def __enter__(self) -> Sampler:
        print("starting ComfyUI ...", flush=True)
        self._server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)

    def run(
        self,
        name: str,
        pattern: str | None,
        budget: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        warm: bool = True,
    ) -> Result:
        """One clip, saved under `name`: dense if pattern is None. budget: what differs from `BUDGET`; settings: what
        `graph` takes beside; warm: whether a short run comes first, so that the time is that of sampling alone."""
        print(f"sampling {name} ...", flush=True)
        sparse = _sparse(pattern, budget)
        server = self._server
        if warm:  # Loads the model and compiles kernels. Its second step is sparse.
            server.run(graph(**{**settings, "steps": 2, "seed": 0}, prefix=f"warm-{name}", sparse=sparse))
        mark = server.mark()
        entry = server.run(graph(**settings, prefix=name, sparse=sparse))
        outputs = entry["outputs"]
        (latent,) = (_file(server, saved) for saved in outputs["save latent"]["latents"])
        frames = [np.asarray(Image.open(_file(server, saved))) for saved in outputs["save frames"]["images"]]
        return Result(
            frames=torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255,
            latent=load_file(latent)["latent_tensor"].float().clone(),
            seconds=_seconds(entry),
            log=parse_line(server.log_since(mark)),
        )

    def seconds(self, name: str, pattern: str | None, budget: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
        """Of sampling alone, after `run` with the same arguments has made what later runs find made."""
        print(f"timing {name} ...", flush=True)
        # Of the same seed ComfyUI would take the latent that it has.
        changes = {"seed": settings.get("seed", 0) + 1, "decode": False}
        made = graph(**{**settings, **changes}, prefix=f"timed-{name}", sparse=_sparse(pattern, budget))
        return _seconds(self._server.run(made))


def sample(comfyui: Path, base: Path, patterns: Sequence[str], *, top_p: float, **settings: Any) -> dict[str, Result]:
    """The result without our nodes, as "dense", and with each pattern, all with one seed. settings: what `graph` takes
    beside; the rest as of Sampler."""
    with Sampler(comfyui, base) as sampler:
        results = {"dense": sampler.run("dense", None, {}, settings)}
        for pattern in patterns:
            results[pattern] = sampler.run(pattern, pattern, {"top_p": top_p}, settings)
    return results


def _sparse(pattern: str | None, budget: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `graph` takes of our nodes; what cannot be fast must not pass unseen."""
    return {"budget": {**BUDGET, **budget}, "pattern": pattern, "fallback": "error"} if pattern else None


def _seconds(entry: Mapping[str, Any]) -> float:
    """From the start of a graph to its end, of its entry in ComfyUI's history."""
    moments = {event: data["timestamp"] for event, data in entry["status"]["messages"]}
    return (moments["execution_success"] - moments["execution_start"]) / 1000


def _file(server: Server, saved: dict[str, str]) -> Path:
    return server.base / "output" / saved["subfolder"] / saved["filename"]
