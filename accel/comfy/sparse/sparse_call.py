"""Planning and running a sparse attention call, and measuring one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

from ....kernels import registry, workers
from ....kernels.quantise import Formats
from ...attention import executor, reasons
from ...attention.account.sample import sample, sampled_rows
from ...attention.account.stopwatch import Stopwatch
from ...attention.call import AttentionCall
from ...attention.guard import ROWS
from ...attention.memory import Glance, LayerMemory
from ...attention.planners import PATTERNS
from ...attention.precision import REFERENCE_CHIP, choose_formats
from ...attention.profiles.observer import CANDIDATES, FLOOR
from ...attention.run import Run, Settings
from ...attention.spending import Spending
from ..compat import failure_reason, pause_malloc_graph, raise_if_interrupted
from .forward_state import ForwardState

log = logging.getLogger("dit_accel")


def choose_backend(settings: Settings, q: torch.Tensor) -> tuple[str | None, str]:
    backend, problem = registry.choose("block_sparse_attention", device=q.device, dtype=q.dtype, head_dim=q.shape[-1])
    fallback = settings.fallback
    # What 8 bits cost can be judged by the reference alone.
    if fallback == "reference" and (backend is None or (backend == "torch" and settings.precision == "8-bit")):
        return "reference", ""
    if backend is None and fallback == "error":
        raise RuntimeError(
            f"fallback is set to error, and no fast kernel can take this attention call: {problem} "
            f"(device {q.device}, dtype {q.dtype}, head dim {q.shape[-1]})"
        )
    return backend, problem


def _attention_call(
    forward: ForwardState, layer: Hashable, q, k, v, scale: float, backend: str, *, changes: bool = True
) -> AttentionCall:
    """changes: whether its plans change what the run remembers of the layer."""
    rows = q.shape[0] // max(len(forward.branches), 1)
    call = (layer, q.device, q.dtype, rows, *q.shape[1:])
    run = forward.run
    memory = (LayerMemory if changes else Glance)(run.cache, forward.branches, call)
    return AttentionCall(q, k, v, forward.layout, scale, backend, memory, run.static, run.settings.token_order)


def sparse_attention(forward: ForwardState, layer: tuple[int, int], q, k, v, scale, backend: str) -> torch.Tensor:
    """Plan and run one call, and sample its error where it is the guard's turn; q, k, v and the result are
    [B, H, N, D]."""
    with _on_this_device(q):
        return _sparse_attention(forward, layer, q, k, v, scale, backend)


@contextmanager
def _on_this_device(q: torch.Tensor) -> Iterator[None]:
    """On a CPU a call takes seconds, on threads that we share out: it can be interrupted."""
    if q.device.type != "cpu":
        yield
        return
    with workers.one_thread_each(), workers.interruptible(raise_if_interrupted):
        yield


def _sparse_attention(forward: ForwardState, layer: tuple[int, int], q, k, v, scale, backend: str) -> torch.Tensor:
    run, step = forward.run, forward.statistics.step
    call = _attention_call(forward, layer, q, k, v, scale, backend)
    spending = run.spending(layer[0], q.device)
    watch = Stopwatch(q.device)
    plan = PATTERNS[run.settings.pattern].plan(call, spending)
    watch.mark()
    formats = _formats(run, layer[0], q, backend)
    sampled = run.guard.samples(layer[0], step)
    out = executor.execute(q, k, v, plan, formats=formats, scale=scale, backend=backend, return_lse=sampled)
    watch.mark()
    error_sample = None
    if sampled:
        out, lse = out
        make_rows = functools.partial(sampled_rows, forward.layout, ROWS, step, q.device)
        rows = run.static.get(("rows", step, forward.layout, q.device), make_rows)
        error_sample = sample(q, k, v, out, lse, rows, scale, backend)
    # One pass over the output, without a tensor of flags; a sum in fp32 of finite 16-bit numbers is finite.
    total = out.sum(dtype=torch.float32) if run.guard.on else None
    watch.mark()
    forward.statistics.record(
        plan,
        watch,
        backend if formats is None else f"{backend} 8-bit",
        (layer, q.shape[2]),
        block=layer[0],
        top_p=run.promised_top_p(layer[0]),
        total=total,
        sample=error_sample,
    )
    return out


def _formats(run: Run, block: int | None, q: torch.Tensor, backend: str) -> Formats | None:
    if backend == "torch":
        return None
    chip = registry.architecture(q.device) if backend == "triton" else REFERENCE_CHIP
    faster = run.gate.faster_at_8_bit(q.device)
    return choose_formats(run.settings.precision, run.settings.pattern, run.budget, chip, faster, block)


def observe(forward: ForwardState, layer: tuple[int, int], q, k, v, scale: float) -> None:
    """Measures what budgets would do to this call. Where that fails, the run goes on without measuring."""
    fast, problem = choose_backend(forward.run.settings, q)
    forward.run.observer.problem = None if fast else problem
    backend, reason = fast or "reference", None
    try:
        with pause_malloc_graph(), torch.cuda.device_of(q), _on_this_device(q):
            _measure(forward, layer, q, k, v, scale, backend, timed=fast is not None)
    except Exception as error:
        reason = failure_reason(error, backend)
        if reason is None:
            raise
        log.warning("DiT Accel: measuring failed (%s)", reason, exc_info=reason != reasons.OUT_OF_MEMORY)
    if reason is not None:
        forward.run.observer.stop(reason)


def _measure(forward: ForwardState, layer: tuple[int, int], q, k, v, scale: float, backend: str, timed: bool) -> None:
    """What budgets would do to this call, and where it is `timed`, once at a noise level how long a sparse call takes.
    In a run that is sparse anyway the calls themselves say that."""
    run, statistics = forward.run, forward.statistics
    watch = Stopwatch(q.device)
    # A sparse run must not become another one by being watched; another run's memory serves the observer alone.
    changes = not run.settings.sparse
    call = _attention_call(forward, layer, q, k, v, scale, backend, changes=changes)
    measured = run.observer.observe(call, statistics.step)
    if timed and not run.settings.sparse and run.observer.tries(statistics.step):
        _try(forward, call, backend)
    watch.mark()
    statistics.record_observation(layer[0], measured, watch)


def _try(forward: ForwardState, call: AttentionCall, backend: str) -> None:
    """Plans and runs a call with the least and the largest of the candidates; the first time is for compiling."""
    run = forward.run
    formats = _formats(run, None, call.q, backend)
    for warm, top_p in ((False, CANDIDATES[0]), (True, CANDIDATES[0]), (True, CANDIDATES[-1])):
        watch = Stopwatch(call.q.device)
        plan = PATTERNS[run.settings.pattern].plan(call, Spending(top_p, False, FLOOR, run.budget.max_density))
        executor.execute(call.q, call.k, call.v, plan, formats=formats, scale=call.scale, backend=backend)
        watch.mark()
        if warm:
            forward.statistics.record_trial(plan, watch)
