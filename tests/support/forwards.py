"""A model evaluation as the APPLY_MODEL wrapper describes it, without ComfyUI or a model."""

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.run import Run, Settings
from dit_accel.accel.attention.schedule import SigmaWindow
from dit_accel.accel.attention.statistics import ForwardStatistics
from dit_accel.accel.comfy.families import Family
from dit_accel.accel.comfy.override import FORWARD_KEY, Forward, attention_override


def make_run() -> Run:
    """A run at 70 % of the attention mass that never falls back."""
    budget = Budget(top_p=0.7, floor=0.0)
    return Run(Settings(fallback="error", budget=budget), budget, SigmaWindow(), "stand-in")


def evaluate(run: Run, layout: TokenLayout, q, k, v, heads: int, branches: tuple = ("a", "b")):
    """One attention call of q, k, v [B, N, H * D] through the override; returns the forward and the output."""
    forward = Forward(
        run=run,
        model=None,
        family=Family("stand-in", None, None, lambda model, options: None),
        layout=layout,
        branches=branches,
        previous=None,
        statistics=ForwardStatistics(expected=1),
    )
    return forward, attention_override(None, q, k, v, heads=heads, transformer_options={FORWARD_KEY: forward})
