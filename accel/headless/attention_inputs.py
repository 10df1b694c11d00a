"""Reads q, k and v out of a model while it denoises."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..attention.layout import TokenLayout
from ..comfy.compat import diffusion_model
from ..comfy.families import ForwardInputs, family_of
from ..comfy.sparse.override import OVERRIDE_KEY

KEY = "dit_accel.recorder"


class Recorder:
    """Keeps the video self-attention inputs of chosen blocks during the forwards of one model.

    blocks: the blocks to keep, counted through, or None for all. heads: the heads to keep, or None for all.
    `calls` holds (block, q, k, v), each [B, H, N, D] on the CPU, of the last forward; `layout` its tokens.
    """

    def __init__(self, blocks: Collection[int] | None = None, heads: Sequence[int] | None = None) -> None:
        self.blocks = blocks
        self.heads = heads
        self.calls: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self.layout: TokenLayout | None = None

    def attach(self, model):
        """A clone of the ModelPatcher `model` that is recorded. Raises ValueError for a model without a row in the
        families' table."""
        from comfy.patcher_extension import WrappersMP

        network = diffusion_model(model.model)
        if family_of(network) is None:
            raise ValueError(f"model: expected one of a known family, found {type(network).__name__}")
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self._apply_model)
        return clone

    def _apply_model(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        model = diffusion_model(executor.class_obj)
        family = family_of(model)
        layout = family.layout(model, ForwardInputs(x, c_crossattn, kwargs))
        if isinstance(layout, str):
            raise ValueError(f"model: its attention cannot be told apart in this forward ({layout})")
        self.layout = layout
        self.calls.clear()
        previous = transformer_options.get(OVERRIDE_KEY)
        places = itertools.count()

        def override(func, q, k, v, heads, *args, **options):
            if q.shape == k.shape and q.shape[-2] == layout.total:
                place = next(places)
                block = family.block(model, options["transformer_options"])
                block = place if block is None else block
                if self.blocks is None or block in self.blocks:
                    parts = (q, k, v)
                    if not options.get("skip_reshape"):
                        parts = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
                    self.calls.append((block, *map(self._keep, parts)))
            call = func if previous is None else functools.partial(previous, func)
            return call(q, k, v, heads, *args, **options)

        options = {**transformer_options, OVERRIDE_KEY: override}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _keep(self, x: Tensor) -> Tensor:
        if self.heads is not None:
            if max(self.heads) >= x.shape[1]:
                raise ValueError(f"heads: expected numbers below {x.shape[1]}, found {max(self.heads)}")
            x = x[:, list(self.heads)]
        # fp32 only where a CPU computes in it: half of it holds what a GPU would have seen.
        return x.to("cpu", torch.float16 if x.dtype == torch.float32 else x.dtype, copy=True)
