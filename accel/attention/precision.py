"""What the sparse kernel multiplies at 8 bits: what the node asks for, and what auto chooses."""

from __future__ import annotations

from ...kernels import registry
from ...kernels.attention_configs import FORMATS
from ...kernels.quantise import FP8, INT8, Formats
from .budget import Budget
from .planners import PATTERNS

# Relative L2 that rounding costs on captures of the bundled model, the worst of them (tests/unit/test_precision.py).
OWN_ERROR = {
    Formats(INT8, None): 0.015,
    Formats(None, FP8): 0.035,
    Formats(INT8, FP8): 0.04,
    Formats(FP8, FP8): 0.09,
}
# auto may lose this part of what the pattern loses.
SHARE = 1 / 3
# The chip whose formats the PyTorch reference rounds to.
REFERENCE_CHIP = "sm_89"


def choose_formats(
    precision: str, pattern: str, budget: Budget, chip: str, faster: bool, block: int | None = None
) -> Formats | None:
    """Formats of a call at `precision` (auto, 16-bit, 8-bit) on a chip of registry.architecture; None for 16 bits.

    faster: whether 8 bits were measured to be faster on this card; without, auto keeps 16. auto expects the error that
    a profile promises of the `block`; without a profile, what the pattern's kind makes for the attention mass that
    top_p lets it drop.
    """
    offered = registry.nearest(FORMATS, chip)
    if precision == "8-bit":
        return offered[0]
    if precision == "auto" and faster:
        if budget.profile is None or block is None:
            expected = PATTERNS[pattern].error_of_dropped_mass * (1 - budget.top_p)
        else:
            expected = budget.profile.promised(block)
        allowed = SHARE * expected
        return next((formats for formats in offered if OWN_ERROR[formats] <= allowed), None)
    return None
