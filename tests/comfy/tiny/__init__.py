"""Tiny video models of every family, sampled through ComfyUI's own samplers.

Importing this needs ComfyUI on sys.path.
"""

from __future__ import annotations

import functools

import comfy.sample
import comfy.utils
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.run import Settings
from dit_accel.accel.comfy.sparse import patch
from dit_accel.tests.comfy.tiny import (
    cogvideo,
    cosmos,
    genmo,
    hunyuan,
    kandinsky,
    lightricks,
    ltx2,
    minimax,
    wan,
    wan_variants,
)
from dit_accel.tests.comfy.tiny.case import TEXT, Case, initialise, rand

__all__ = ["CASES", "TEXT", "budget", "history", "initialise", "rand", "sample", "sparse"]

CASES = [
    *wan.CASES,
    *wan_variants.CASES,
    *hunyuan.CASES,
    *cogvideo.CASES,
    *genmo.CASES,
    *cosmos.CASES,
    *kandinsky.CASES,
    *lightricks.CASES,
    *ltx2.CASES,
    *minimax.CASES,
]


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
    """`model` with sparse attention on the reference backend, as the budget says and without the guard."""
    names = ("pattern", "precision", "token_order", "fallback", "guard")
    asked = {name: changes.pop(name) for name in names if name in changes}
    settings = {"fallback": "reference", "guard": "off", **asked}
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
    out = comfy.sample.sample(
        model,
        case.latents(batch, functools.partial(rand, seed=1)),
        steps,
        case.cfg if cfg is None else cfg,
        sampler,
        "simple",
        positive or case.conditioning(2),
        negative or case.conditioning(3),
        case.latents(batch, torch.zeros),
        disable_pbar=True,
        seed=0,
        **{"noise_mask": case.mask(), **kwargs},
    )
    return comfy.utils.pack_latents(out.unbind())[0] if out.is_nested else out
