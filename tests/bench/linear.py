"""A linear layer with 4-bit weights on every path, beside the plain one and torch's 8-bit ones: times, memory, error of
what was timed.

The layer is drawn: a normal weight, normal inputs with a few loud channels, smoothed and given a low rank as SVDQuant
does. Its errors compare the paths with each other; they are not a model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_accel.accel.bench.case import relative_error
from dit_accel.accel.bench.timing import peak_bytes, timed
from dit_accel.accel.quant import compute
from dit_accel.accel.quant.linear import quantised_linear
from dit_accel.accel.quant.weight4 import Weight4, pack_nibbles
from dit_accel.tests.bench.linear_peers import PEERS, peer_linear, peer_problem

PLAIN = "linear"  # torch's, on the weight before it was quantised
PATHS = (compute.W4A16, compute.INT8, compute.FP8, compute.W4A4)
EVERY = (*PEERS, *PATHS)
GROUP, RANK, LOUD = 64, 32, 16
DTYPE = torch.bfloat16
CHECKED = 1024  # tokens whose outputs are compared with fp32


@dataclass(frozen=True)
class Layer:
    """plain [N, K] and x [M, K], bf16, and the weight in 4 bits. repeats: runs in each median."""

    plain: Tensor
    x: Tensor
    weight: Weight4
    repeats: int

    def about(self) -> dict[str, Any]:
        (rows, columns), tokens = self.plain.shape, self.x.shape[0]
        return {"out": rows, "in": columns, "tokens": tokens, "rank": self.weight.rank, "repeats": self.repeats}

    def error(self, out: Tensor) -> float:
        """Relative L2 distance to the plain layer in fp32, of the first CHECKED tokens."""
        return relative_error(out[:CHECKED], self.x[:CHECKED].float() @ self.plain.float().T)

    def flops(self, ms: float) -> float:
        return 2 * self.plain.numel() * self.x.shape[0] / (ms / 1000)


def drawn_layer(rows: int, columns: int, tokens: int, device: torch.device, repeats: int) -> Layer:
    """A layer [rows, columns] and its input [tokens, columns], the same on every call."""
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device, dtype=DTYPE)

    plain = normal(rows, columns) / columns**0.5
    x = normal(tokens, columns)
    x[:, :: columns // LOUD] *= 30
    smooth = (x.abs().amax(0) / plain.abs().amax(0)).sqrt()
    return Layer(plain, x, _svdquant(plain, smooth), repeats)


def _svdquant(plain: Tensor, smooth: Tensor) -> Weight4:
    smoothed = plain.float() * smooth.float()
    # It draws from the global generator.
    with torch.random.fork_rng(devices=[plain.device] if plain.is_cuda else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(smoothed, q=RANK + 8, niter=2)
    up = (u[:, :RANK] * s[:RANK]).to(DTYPE)
    down = (v[:, :RANK] / smooth.float()[:, None]).to(DTYPE)
    smoothed -= up.float() @ (down.float() * smooth.float()[:, None]).T
    groups = smoothed.unflatten(1, (-1, GROUP))
    scale = (groups.abs().amax(-1) / 7).to(DTYPE)
    codes = (groups / scale.float()[..., None]).round_().clamp_(-7, 7).flatten(1).to(torch.int8)
    return Weight4(pack_nibbles(codes), scale.T.contiguous(), smooth=smooth, proj_down=down, proj_up=up)


def rows_of(layer: Layer, paths: Sequence[str], card: compute.Card, done: Callable[..., bool]) -> Iterator[dict]:
    """The rows of a layer one by one, the plain linear first; paths: some of EVERY. done(**fields) says that there is a
    row with such fields, which is left out."""
    for path in (PLAIN, *paths):
        if done(path=path):
            continue
        if problem := _problem(path, card):
            yield layer.about() | {"path": path, "valid": False, "remark": f"skipped: {problem}"}
            continue
        yield measure(layer, path, _runner(layer, path))


def _problem(path: str, card: compute.Card) -> str:
    if path == PLAIN:
        return ""
    return peer_problem(path, card) if path in PEERS else compute.card_problem(path, card)


def _runner(layer: Layer, path: str) -> Callable[[], Tensor]:
    if path == PLAIN:
        return lambda: F.linear(layer.x, layer.plain)
    if path in PEERS:
        peer = peer_linear(path, layer.plain)
        return lambda: peer(layer.x)
    return lambda: quantised_linear(layer.x, layer.weight, None, path)


def measure(layer: Layer, path: str, run: Callable[[], Tensor]) -> dict[str, Any]:
    """One row: two medians in milliseconds, the error of the very output that was timed, the most memory beyond the
    layer, its input and its output."""
    row = layer.about() | {"path": path}
    try:
        out, ms, again_ms = timed(run, layer.repeats, layer.x.device)
        error, peak = layer.error(out), peak_bytes(run, layer.x.device)
    # A kernel that cannot be compiled or run must not cost the rows after it; the table shows it.
    except Exception as problem:
        return row | {"valid": False, "failed": True, "remark": f"failed: {type(problem).__name__}: {problem}"}
    numbers = {"error": error, "ms": ms, "again_ms": again_ms, "flops": layer.flops(ms), "peak_bytes": peak}
    finite = error < float("inf")
    return row | numbers | {"valid": finite, "remark": "" if finite else "invalid: the output is not finite"}
