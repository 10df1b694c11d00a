"""The modules of the pack under test, as ComfyUI loaded them."""

import contextlib
import sys

KEY = "dit_accel.sparse_attention"


def module(name):
    """The loaded module `accel.<name>`."""
    suffix = f".accel.{name}"
    found = [m for key, m in list(sys.modules.items()) if key.endswith(suffix) and not key.startswith("dit_accel")]
    if len(found) != 1:
        raise RuntimeError(f"expected the pack to be loaded once, found {found}")
    return found[0]


@contextlib.contextmanager
def executing(replacement):
    """`replacement(original, q, k, v, plan, **settings)` runs in place of the pack's executor."""
    attention = module("attention.executor")
    original = attention.execute
    attention.execute = lambda *args, **kwargs: replacement(original, *args, **kwargs)
    try:
        yield
    finally:
        attention.execute = original


@contextlib.contextmanager
def planning(pattern, replacement):
    """`replacement(original, call, budget)` makes the plans of that pattern."""
    patterns = module("attention.planners").PATTERNS
    original = patterns[pattern]
    patterns[pattern] = original._replace(plan=lambda call, budget: replacement(original.plan, call, budget))
    try:
        yield
    finally:
        patterns[pattern] = original


def on_sampling(model, key, around):
    """A clone of model; `around(executor, *args)` runs in place of each of its sampling runs."""
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, around)
    return clone
