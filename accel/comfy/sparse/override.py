"""The attention override: classify a call, decide, plan, execute, record."""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable

import torch

from ...attention import reasons
from ...attention.account.stopwatch import Stopwatch
from ...attention.cost.costs import Size
from ..compat import failure_reason, pause_malloc_graph
from .forward_state import FORWARD_KEY, Forward
from .sparse_call import choose_backend, observe, sparse_attention

log = logging.getLogger("dit_accel")

OVERRIDE_KEY = "optimized_attention_override"


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

    def leave(reason: str):
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

    def dense(reason: str):
        watch = Stopwatch(q.device)
        out = leave(reason)
        watch.mark()
        forward.statistics.record_dense(layer[0], watch)
        return out

    if kwargs.get("enable_gqa"):
        return leave(reasons.GROUPED_QUERY)
    if skip_reshape:
        queries, keys, values = q, k, v
    else:
        queries, keys, values = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    reason = _other_attention(forward, queries, keys, values)
    if reason is not None:
        return leave(reason)

    layer = forward.layer(options)
    forward.run.check_profile(queries.shape[1], forward.statistics.expected)
    unfit = _unfit(queries, keys, values, mask, kwargs)
    scale = queries.shape[-1] ** -0.5 if kwargs.get("scale") is None else kwargs["scale"]
    observer = forward.run.observer
    if observer is not None and unfit is None and observer.measures(layer[0], forward.statistics.step):
        observe(forward, layer, queries, keys, values, scale)
    reason = forward.dense_reason or unfit or _not_this_block(forward, layer[0])
    if reason is not None:
        return dense(reason)
    backend, problem = choose_backend(forward.run.settings.fallback, queries)
    if backend is None:
        return dense(f"{reasons.NO_KERNEL}: {problem}")
    spending = forward.run.spending(layer[0], queries.device)
    if backend == "triton" and _dense_is_faster(forward, layer, queries):
        return dense(reasons.DENSE_FASTER)

    try:
        with pause_malloc_graph(), torch.cuda.device_of(queries):
            out = sparse_attention(forward, layer, queries, keys, values, scale, backend, spending)
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


def _other_attention(forward: Forward, q, k, v) -> str | None:
    """What the call is if it is no video self-attention."""
    if q.shape != k.shape or q.shape != v.shape:
        return reasons.CROSS_ATTENTION
    return reasons.OTHER_STREAM if q.shape[2] != forward.layout.total else None


def _not_this_block(forward: Forward, block: int) -> str | None:
    if block in forward.run.budget.dense_blocks:
        return reasons.DENSE_BLOCK
    if forward.run.guard.is_dense(block):
        return reasons.GUARD
    profile = forward.run.budget.profile
    # A plan that keeps everything would only be dearer, and of what was not measured nothing is known.
    whole = profile is not None and (block not in profile.layers or min(profile.row(block)) >= 1)
    return reasons.PROFILE if whole else None


def _unfit(q, k, v, mask, kwargs) -> str | None:
    """What the sparse kernel does not do of this call."""
    if mask is not None:
        return reasons.MASK
    if kwargs.get("low_precision_attention") is False:
        return reasons.FULL_PRECISION
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return reasons.GRADIENTS
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        return reasons.STRIDED
    return None


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
