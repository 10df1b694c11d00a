"""One capture on the device: what every row of the bench is measured on and compared with."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .inputs import Inputs
from .timing import Timing, timed


class Case:
    """q, k, v: [1, H, N, D], dtype, or bf16 on a GPU and fp32 elsewhere. backend runs planning and attention: `triton`,
    `torch` or `reference`. repeats: runs in each median."""

    def __init__(
        self, inputs: Inputs, *, device: str, backend: str, repeats: int, dtype: torch.dtype | None = None
    ) -> None:
        dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
        self.q, self.k, self.v = (x.to(device, dtype) for x in inputs[:3])
        self.inputs = inputs
        self.layout = inputs.layout
        self.scale = self.q.shape[-1] ** -0.5
        self.backend = backend
        self.repeats = repeats

    @property
    def device(self) -> torch.device:
        return self.q.device

    @property
    def dtype(self) -> str:
        return str(self.q.dtype).removeprefix("torch.")

    @cached_property
    def exact(self) -> Tensor:
        """Dense attention in fp32, of the inputs as they are on the device."""
        return self._dense(*(x.float() for x in (self.q, self.k, self.v)))

    @cached_property
    def dense(self) -> Timing:
        """Dense attention as torch chooses to run it: what a model without the pack pays."""
        return timed(lambda: self._dense(self.q, self.k, self.v), self.repeats, self.device)

    def error(self, out: Tensor) -> float:
        """Relative L2 distance to `exact`."""
        return relative_error(out, self.exact)

    def useful_flops(self, density: float, ms: float) -> float:
        """FLOP/s that went into pairs of a query and a key that were kept: 4 D for each."""
        pairs = density * self.layout.total**2 * self.q.shape[0] * self.q.shape[1]
        return 4 * pairs * self.q.shape[-1] / (ms / 1000)

    def about(self) -> dict[str, Any]:
        """What a row says about its inputs."""
        return {
            "inputs": self.inputs.source,
            "inputs_sha256": self.inputs.sha256,
            "tokens": self.layout.total,
            "grid": list(self.layout.grid),
            "heads": self.q.shape[1],
            "head_dim": self.q.shape[-1],
            "dtype": self.dtype,
            "repeats": self.repeats,
        }

    def _dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)


def relative_error(out: Tensor, exact: Tensor) -> float:
    """L2 norm of the difference over that of the fp32 tensor `exact`."""
    return ((out.float() - exact).norm() / exact.norm()).item()
