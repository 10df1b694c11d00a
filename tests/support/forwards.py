"""A forward as the APPLY_MODEL wrapper describes it, without ComfyUI or a model."""

import contextlib

from dit_accel.accel.attention.account.forward_statistics import ForwardStatistics
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.run import Run, Settings
from dit_accel.accel.attention.schedule import SigmaWindow
from dit_accel.accel.comfy.families import Family
from dit_accel.accel.comfy.sparse import override, sparse_call
from dit_accel.accel.comfy.sparse.forward_state import FORWARD_KEY, ForwardState
from dit_accel.accel.comfy.sparse.override import attention_override


def make_run(fallback: str = "error", pattern: str = "svg2") -> Run:
    """A run at 70 % of the attention mass; by default one that never falls back."""
    budget = Budget(top_p=0.7, floor=0.0)
    return Run(Settings(pattern=pattern, fallback=fallback, budget=budget), budget, SigmaWindow(), "stand-in")


def make_forward(run: Run, layout: TokenLayout, branches: tuple = ("a", "b"), previous=None) -> ForwardState:
    return ForwardState(
        run=run,
        model=None,
        family=Family("stand-in", None, None),
        layout=layout,
        branches=branches,
        previous=previous,
        statistics=ForwardStatistics(expected=1),
    )


def evaluate(run: Run, layout: TokenLayout, q, k, v, heads: int):
    """One attention call of q, k, v [2, N, H * D] through the override; returns the forward and the output."""
    forward = make_forward(run, layout)
    return forward, attention_override(None, q, k, v, heads=heads, transformer_options={FORWARD_KEY: forward})


def outside_comfyui(monkeypatch) -> None:
    """What a call asks of ComfyUI itself."""
    for module in (override, sparse_call):
        monkeypatch.setattr(module, "pause_malloc_graph", contextlib.nullcontext)
    monkeypatch.setattr(sparse_call, "raise_if_interrupted", lambda: None)
