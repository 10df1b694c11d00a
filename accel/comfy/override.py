"""The attention override: classify a call, decide, plan, execute, record."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...kernels import registry
from ..attention import executor, reasons
from ..attention.call import AttentionCall
from ..attention.costs import Size
from ..attention.layout import TokenLayout
from ..attention.planners import PATTERNS
from ..attention.precision import REFERENCE_CHIP, choose_formats
from ..attention.run import Run
from ..attention.state import LayerMemory
from ..attention.statistics import ForwardStatistics, Stopwatch
from .compat import failure_reason, pause_malloc_graph
from .families import Family

log = logging.getLogger("dit_accel")

OVERRIDE_KEY = "optimized_attention_override"
FORWARD_KEY = "dit_accel_forward"


@dataclass
class Forward:
    """One model evaluation, as every attention call of it finds it in transformer_options.

    branches: one id per equal part of the batch, none if the parts are unknown. previous: the override that stood
    in our place before. dense_reason: why what remains of the forward is dense; set when a call failed.
    """

    run: Run
    model: Any
    family: Family
    layout: TokenLayout
    branches: Sequence[Hashable]
    previous: Callable | None
    statistics: ForwardStatistics
    dense_reason: str | None = None
    _seen: Counter = field(default_factory=Counter)

    def __deepcopy__(self, memo) -> Forward:
        """It travels in model options, which other nodes copy, and must not take the model along."""
        return self

    def layer(self, options: Mapping[str, Any]) -> tuple[int, int]:
        """Identity of this video self-attention call: the number of its block and which of that block's calls it is.
        Where the model gives no number, it is the call's place among all of the forward."""
        number = self.family.block(self.model, options)
        if number is None:
            number = self._seen.total()
        self._seen[number] += 1
        return number, self._seen[number]


def attention_override(
    func,
    q,
    k,
    v,
    heads,
    mask=None,
    attn_precision=None,
    skip_reshape=False,
    skip_output_reshape=False,
    **kwargs,
):
    """ComfyUI's override contract: q, k, v are [B, N, H * D], or [B, H, N, D] with skip_reshape.

    Whatever we do not take goes to the override that was there before us, else to `func`.
    """
    options = kwargs["transformer_options"]
    forward: Forward = options[FORWARD_KEY]

    def dense(reason: str):
        forward.statistics.dense[reason] += 1
        call = func if forward.previous is None else functools.partial(forward.previous, func)
        return call(
            q,
            k,
            v,
            heads,
            mask=mask,
            attn_precision=attn_precision,
            skip_reshape=skip_reshape,
            skip_output_reshape=skip_output_reshape,
            **kwargs,
        )

    if kwargs.get("enable_gqa"):
        return dense(reasons.GROUPED_QUERY)
    if skip_reshape:
        queries, keys, values = q, k, v
    else:
        queries, keys, values = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))

    reason = _dense_reason(forward, queries, keys, values, mask, kwargs)
    if reason is not None:
        return dense(reason)
    layer = forward.layer(options)
    if layer[0] in forward.run.budget.dense_blocks:
        return dense(reasons.DENSE_BLOCK)
    backend, problem = _backend(forward.run.settings.fallback, queries)
    if backend is None:
        return dense(f"{reasons.NO_KERNEL}: {problem}")
    if backend == "triton" and _dense_is_faster(forward, layer, queries):
        return dense(reasons.DENSE_FASTER)

    try:
        with pause_malloc_graph(), torch.cuda.device_of(queries):
            out = _sparse(forward, layer, queries, keys, values, kwargs.get("scale"), backend)
    except Exception as error:
        reason = failure_reason(error, backend)
        if reason is None or forward.run.settings.fallback == "error":
            raise
        log.warning("DiT Accel: a sparse attention call failed (%s)", reason, exc_info=backend == "triton")
    if reason is not None:
        # Outside the except block, so that the traceback no longer holds our tensors.
        _give_up(forward, reason)
        return dense(reason)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def _give_up(forward: Forward, reason: str) -> None:
    """The rest of this forward stays dense; a kernel that cannot run would fail in the next one too."""
    forward.dense_reason = reason
    if reason != reasons.OUT_OF_MEMORY:
        forward.run.dense_reason = reason
    with pause_malloc_graph():
        forward.run.cache.clear()
        forward.run.static.clear()


@functools.cache
def uncompiled_override():
    """The one callable that is installed. torch.compile drops its guards on transformer_options, so what reads them
    stays outside of it. Built on first use: torch._dynamo is heavy to import."""
    return torch.compiler.disable(attention_override)


def _dense_reason(forward: Forward, q, k, v, mask, kwargs) -> str | None:
    if q.shape != k.shape or q.shape != v.shape:
        return reasons.CROSS_ATTENTION
    if q.shape[2] != forward.layout.total:
        return reasons.OTHER_STREAM
    if forward.dense_reason is not None:
        return forward.dense_reason
    if mask is not None:
        return reasons.MASK
    if kwargs.get("low_precision_attention") is False:
        return reasons.FULL_PRECISION
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return reasons.GRADIENTS
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        return reasons.STRIDED
    return None


def _backend(fallback: str, q: torch.Tensor) -> tuple[str | None, str]:
    backend, problem = registry.choose("block_sparse_attention", device=q.device, dtype=q.dtype, head_dim=q.shape[-1])
    if backend is None and fallback == "reference":
        return "reference", ""
    if backend is None and fallback == "error":
        raise RuntimeError(
            f"fallback is set to error, and no fast kernel can take this attention call: {problem} "
            f"(device {q.device}, dtype {q.dtype}, head dim {q.shape[-1]})"
        )
    return backend, problem


def _dense_is_faster(forward: Forward, layer: Hashable, q: torch.Tensor) -> bool:
    """What the run's gate says of q [B, H, N, D]. reference and error ask for the sparse result whatever it costs."""
    run, settings = forward.run, forward.run.settings
    if settings.fallback != "dense":
        return False
    batch, heads, tokens, dim = q.shape
    size = Size(batch * heads, tokens, forward.layout.video, dim)
    return run.gate.dense_is_faster(
        (layer, tokens),
        size,
        q.device,
        settings.pattern,
        run.budget,
        settings.precision,
        warm=bool(forward.branches),
    )


def _sparse(forward: Forward, layer: Hashable, q, k, v, scale: float | None, backend: str) -> torch.Tensor:
    """Plan and run one call; q, k, v and the result are [B, H, N, D]."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows = q.shape[0] // max(len(forward.branches), 1)
    call = (layer, q.device, q.dtype, rows, *q.shape[1:])
    watch = Stopwatch(q.device)
    settings = forward.run.settings
    attention = AttentionCall(
        q,
        k,
        v,
        forward.layout,
        scale,
        backend,
        LayerMemory(forward.run.cache, forward.branches, call),
        forward.run.static,
        settings.token_order,
    )
    plan = PATTERNS[settings.pattern].plan(attention, forward.run.budget)
    watch.mark()
    chip = registry.architecture(q.device) if backend == "triton" else REFERENCE_CHIP
    faster = forward.run.gate.faster_at_8_bit(q.device)
    formats = choose_formats(settings.precision, settings.pattern, forward.run.budget, chip, faster)
    out = executor.execute(q, k, v, plan, formats=formats, scale=scale, backend=backend)
    watch.mark()
    forward.statistics.record(plan, watch, backend if formats is None else f"{backend} 8-bit", (layer, q.shape[2]))
    return out
