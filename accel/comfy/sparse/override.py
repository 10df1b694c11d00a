"""The attention override: whether a call can be sparse, and what happens to it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attention import reasons
from ...attention.account.stopwatch import Stopwatch
from ...attention.cost.costs import Size
from ..compat import failure_reason, pause_malloc_graph
from .forward_state import FORWARD_KEY, ForwardState
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
    forward: ForwardState = options[FORWARD_KEY]

    def leave(reason: str):
        forward.statistics.dense[reason] += 1
        call_on = func if forward.previous is None else functools.partial(forward.previous, func)
        return call_on(
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
        forward.statistics.record_dense(call.layer[0], watch, call.key)
        return out

    call = OverrideCall(forward, q, k, v, heads, skip_reshape, mask, kwargs)
    if reason := first(NOT_OURS, call):
        return leave(reason)

    call.layer = forward.layer(options)
    forward.run.check_profile(call.tensors[0].shape[1], forward.statistics.expected)
    observer = forward.run.observer
    if observer is not None and observer.measures(call.layer[0], forward.statistics.step) and not first(UNFIT, call):
        observe(forward, call.layer, *call.tensors, call.scale)
    if reason := first(DENSE, call):
        return dense(reason)

    failure = None
    try:
        with pause_malloc_graph(), torch.cuda.device_of(q):
            out = sparse_attention(forward, call.layer, *call.tensors, call.scale, call.backend)
    except Exception as error:
        failure = failure_reason(error, call.backend)
        fallback = forward.run.settings.fallback
        # Who asks for plain PyTorch whatever it costs is to see why it fails.
        asked = fallback == "reference" and call.backend == "torch" and failure != reasons.OUT_OF_MEMORY
        if failure is None or asked or fallback == "error":
            raise
        # Where memory ran out, who keeps the record would keep what the call had.
        log.warning(
            "DiT Accel: a sparse attention call failed (%s)", failure, exc_info=failure != reasons.OUT_OF_MEMORY
        )
    if failure is not None:
        # Outside the except block, so that the traceback no longer holds our tensors.
        _give_up(forward, failure)
        return dense(failure)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


@dataclass
class OverrideCall:
    """A call that the override was asked for. q, k, v: as ComfyUI hands them over; options: its other keywords. layer:
    of a video self-attention call, as ForwardState.layer numbers it."""

    forward: ForwardState
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    split: bool
    mask: Tensor | None
    options: Mapping[str, Any]
    layer: tuple[int, int] = (0, 0)

    @functools.cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as [B, H, N, D]."""
        if self.split:
            return self.q, self.k, self.v
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.q, self.k, self.v))
        return q, k, v

    @property
    def key(self) -> Hashable:
        """The call's identity in the run."""
        return self.layer, self.tensors[0].shape[2]

    @property
    def scale(self) -> float:
        scale = self.options.get("scale")
        return self.tensors[0].shape[-1] ** -0.5 if scale is None else scale

    @functools.cached_property
    def _choice(self) -> tuple[str | None, str]:
        return choose_backend(self.forward.run.settings, self.tensors[0])

    @property
    def backend(self) -> str | None:
        """What runs the call, None where nothing can."""
        return self._choice[0]

    @property
    def no_backend_because(self) -> str:
        return self._choice[1]


# Why a call stays dense: questions in the order in which they are asked, each with its reason or None.
Question = Callable[[OverrideCall], str | None]


def first(questions: Sequence[Question], call: OverrideCall) -> str | None:
    """The first reason that a question gives."""
    return next((reason for question in questions if (reason := question(call)) is not None), None)


def _grouped_query(call: OverrideCall) -> str | None:
    return reasons.GROUPED_QUERY if call.options.get("enable_gqa") else None


def _cross_attention(call: OverrideCall) -> str | None:
    q, k, v = call.tensors
    return reasons.CROSS_ATTENTION if q.shape != k.shape or q.shape != v.shape else None


def _other_stream(call: OverrideCall) -> str | None:
    return reasons.OTHER_STREAM if call.tensors[0].shape[2] != call.forward.layout.total else None


def _mask(call: OverrideCall) -> str | None:
    return reasons.MASK if call.mask is not None else None


def _full_precision(call: OverrideCall) -> str | None:
    return reasons.FULL_PRECISION if call.options.get("low_precision_attention") is False else None


def _gradients(call: OverrideCall) -> str | None:
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in call.tensors)
    return reasons.GRADIENTS if wanted else None


def _strided(call: OverrideCall) -> str | None:
    return reasons.STRIDED if any(x.stride(-1) != 1 for x in call.tensors) else None


def _whole_forward(call: OverrideCall) -> str | None:
    return call.forward.dense_reason


def _dense_block(call: OverrideCall) -> str | None:
    return reasons.DENSE_BLOCK if call.layer[0] in call.forward.run.budget.dense_blocks else None


def _guard(call: OverrideCall) -> str | None:
    return reasons.GUARD if call.forward.run.guard.is_dense(call.layer[0]) else None


def _profile(call: OverrideCall) -> str | None:
    """A plan that keeps everything would only be dearer, and of what was not measured nothing is known."""
    profile, block = call.forward.run.budget.profile, call.layer[0]
    whole = profile is not None and (block not in profile.layers or min(profile.row(block)) >= 1)
    return reasons.PROFILE if whole else None


def _no_kernel(call: OverrideCall) -> str | None:
    return f"{reasons.NO_KERNEL}: {call.no_backend_because}" if call.backend is None else None


def _dense_faster(call: OverrideCall) -> str | None:
    """What the run's gate says of a GPU's kernels, and its own times of anything else. reference and error ask for the
    sparse result whatever it costs."""
    run = call.forward.run
    if run.settings.fallback != "dense":
        return None
    if call.backend == "torch":
        return {True: None, False: reasons.TIMED_DENSE, None: reasons.UNTRIED}[run.race.verdict(call.key)]
    batch, heads, tokens, dim = call.tensors[0].shape
    faster = run.gate.dense_is_faster(
        call.key,
        Size(batch * heads, tokens, call.forward.layout.video, dim),
        call.q.device,
        run.settings.pattern,
        run.budget,
        run.settings.precision,
        warm=bool(call.forward.branches),
    )
    return reasons.DENSE_FASTER if faster else None


# No self-attention over the video: nothing of ours is counted.
NOT_OURS: tuple[Question, ...] = (_grouped_query, _cross_attention, _other_stream)
# What the sparse kernel does not do.
UNFIT: tuple[Question, ...] = (_mask, _full_precision, _gradients, _strided)
# Of the video's self-attention.
DENSE: tuple[Question, ...] = (
    _whole_forward,
    *UNFIT,
    _dense_block,
    _guard,
    _profile,
    _no_kernel,
    _dense_faster,
)


def _give_up(forward: ForwardState, reason: str) -> None:
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
