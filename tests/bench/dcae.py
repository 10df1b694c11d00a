"""A DC-AE at once and in strips beside diffusers': times, memory, error of what was timed.

Weights and pictures are drawn: they set neither time nor memory, and the errors compare the ways with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_accel.accel.bench import timing
from dit_accel.accel.bench.case import relative_error
from dit_accel.accel.bench.timing import timed
from dit_accel.accel.dcae.config import Config
from dit_accel.accel.dcae.network import DCAE
from dit_accel.accel.dcae.peak_memory import DECODE, ENCODE, peak_bytes
from dit_accel.tests.bench.dcae_peers import Unavailable, diffusers_twin
from dit_accel.tests.bench.live_memory import LiveMemory

WHOLE, STRIPS, DIFFUSERS, TILED = "at once", "strips", "diffusers", "diffusers tiled"
PARTS = (DECODE, ENCODE)


@dataclass(frozen=True)
class Drawn:
    """network: in the dtype that is timed; exact: the same in fp32. rows: latent rows in a strip; repeats: runs in each
    median."""

    network: DCAE
    exact: DCAE
    device: torch.device
    rows: int
    repeats: int

    @property
    def dtype(self) -> torch.dtype:
        return self.network.decoder.conv_in.weight.dtype

    def about(self, part: str, pixels: int) -> dict[str, Any]:
        return {
            "variant": self.network.config.name,
            "part": part,
            "pixels": pixels,
            "dtype": str(self.dtype).removeprefix("torch."),
            "strip_rows": self.rows,
            "repeats": self.repeats,
        }


def drawn(config: Config, device: torch.device, dtype: torch.dtype, rows: int, repeats: int) -> Drawn:
    """An autoencoder whose layers keep the size of what they are given, the same on every call."""
    random = torch.Generator(device).manual_seed(0)
    exact = DCAE(config, device="meta").to_empty(device=device).eval().requires_grad_(False)
    for name, value in exact.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, value[0].numel() ** -0.5, generator=random)
        else:
            value.fill_(1 if name.endswith(("norm.weight", "norm_out.weight", "running_var")) else 0)
    network = exact if dtype == torch.float32 else deepcopy(exact).to(dtype)
    return Drawn(network, exact, device, rows, repeats)


def rows_of(case: Drawn, pixels: int, done: Callable[..., bool]) -> Iterator[dict[str, Any]]:
    """The rows of a square picture of `pixels` a side, one by one. done(**fields) says that there is a row with such
    fields, which is left out."""
    with torch.inference_mode():
        for part in PARTS:
            about = case.about(part, pixels)
            left = [way for way in (WHOLE, STRIPS, DIFFUSERS, TILED) if not done(**about, way=way)]
            if left:
                x = _input(case, part, pixels)
                exact = getattr(case.exact, part)(x.float(), case.rows)
            for way in left:
                yield about | {"way": way} | _measured(case, part, way, x, exact)


def _input(case: Drawn, part: str, pixels: int) -> Tensor:
    config = case.network.config
    if part == DECODE:
        shape = 1, config.latent_channels, pixels // config.factor, pixels // config.factor
    else:
        shape = 1, 3, pixels, pixels
    random = torch.Generator(case.device).manual_seed(1)
    return torch.randn(shape, generator=random, device=case.device).to(case.dtype)


def _measured(case: Drawn, part: str, way: str, x: Tensor, exact: Tensor) -> dict[str, Any]:
    """Two medians in milliseconds, the error of the very output that was timed, the most memory beyond the input."""
    config, rows = case.network.config, case.rows if way == STRIPS else None
    numbers: dict[str, Any] = {}
    if way in (WHOLE, STRIPS):
        latent = (exact if part == ENCODE else x).shape[2:]
        numbers["predicted_bytes"] = peak_bytes(config, part, *latent, rows, case.dtype)
    try:
        run = _runner(case, part, way, x)
        out, ms, again_ms = timed(run, case.repeats, case.device)
        numbers |= {"error": relative_error(out, exact), "ms": ms, "again_ms": again_ms}
        del out
        numbers["peak_bytes"] = _peak(run, x, case.device)
    except Unavailable as reason:
        return {"valid": False, "remark": f"skipped: {reason}"}
    # A way that runs out of memory must not cost the rows after it; the table shows it.
    except Exception as problem:
        return numbers | {"valid": False, "failed": True, "remark": f"failed: {type(problem).__name__}: {problem}"}
    finite = numbers["error"] < float("inf")
    return numbers | {"valid": finite, "remark": "" if finite else "invalid: the output is not finite"}


def _runner(case: Drawn, part: str, way: str, x: Tensor) -> Callable[[], Tensor]:
    if way in (WHOLE, STRIPS):
        rows = case.rows if way == STRIPS else None
        return lambda: getattr(case.network, part)(x, rows)
    twin = diffusers_twin(case.network)
    if way == TILED:
        twin.enable_tiling()
    return lambda: getattr(twin, part)(x, return_dict=False)[0]


def _peak(run: Callable[[], Tensor], x: Tensor, device: torch.device) -> int:
    """The result included. On a GPU the allocator's own count, elsewhere of tensors as torch makes them."""
    if device.type == "cuda":
        out = run()
        size = out.nbytes
        del out
        return timing.peak_bytes(run, device) + size
    with LiveMemory(x) as memory:
        run()
    return memory.peak
