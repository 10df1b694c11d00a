"""Tiny video models of every family, sampled through ComfyUI's own samplers.

Importing this needs ComfyUI on sys.path.
"""

from __future__ import annotations

import comfy.sample
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.run import Settings
from dit_accel.accel.comfy import patch

from . import hunyuan, wan
from .case import TEXT, Case, initialise, rand

__all__ = ["CASES", "TEXT", "budget", "history", "initialise", "rand", "sample", "sparse"]

CASES = [*wan.CASES, *hunyuan.CASES]


def budget(**changes) -> Budget:
    """Sparse everywhere, unless changed."""
    return Budget(
        **{
            "top_p": 1.0,
            "floor": 1.0,
            "dense_first": 0.0,
            "dense_last": 0.0,
            "dense_blocks": frozenset(),
            "min_tokens": 0,
            **changes,
        }
    )


def sparse(model, **changes):
    """`model` with sparse attention on the reference backend."""
    names = ("pattern", "token_order", "fallback")
    settings = {"fallback": "reference"} | {name: changes.pop(name) for name in names if name in changes}
    return patch.install(model, Settings(**settings, budget=budget(**changes)))


def history(model):
    return model.get_attachment(patch.KEY).history


def sample(
    model,
    case: Case,
    *,
    steps: int = 2,
    cfg: float | None = None,
    sampler: str = "euler",
    positive=None,
    negative=None,
    batch: int = 1,
    **kwargs,
) -> torch.Tensor:
    """The latent that ComfyUI's sampler makes from fixed noise."""
    shape = (batch, *case.latent[1:])
    return comfy.sample.sample(
        model,
        rand(*shape, seed=1),
        steps,
        case.cfg if cfg is None else cfg,
        sampler,
        "simple",
        positive or case.conditioning(2),
        negative or case.conditioning(3),
        torch.zeros(shape),
        disable_pbar=True,
        seed=0,
        **kwargs,
    )
