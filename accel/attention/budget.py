"""The budget: how much of attention may be skipped, where in the schedule and in which blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .profiles.profile import Profile
from .spending import Spending

AUTO = "auto"
CUSTOM = "custom"
FEW_STEP = "few_step"

# Below this many steps the first dense step is already a large share of the run.
FEW_STEPS = 10
# No model has more blocks; a typing error must not fill the memory.
MAX_BLOCK = 9999


def parse_blocks(text: str, name: str = "dense_blocks") -> frozenset[int]:
    """Block numbers from a list such as `0, 1, 47-49`; empty text gives the empty set.

    Raises ValueError that names the input `name` and the part that cannot be read.
    """
    blocks: set[int] = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = re.fullmatch(r"([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?", part)
        if match is None:
            raise ValueError(
                f"{name}: expected block numbers and ranges such as '0, 1, 47-49', found {part!r} in {text!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{name}: range {part!r} ends before it starts")
        if last > MAX_BLOCK:
            raise ValueError(f"{name}: expected block numbers up to {MAX_BLOCK}, found {part!r}")
        blocks.update(range(first, last + 1))
    return frozenset(blocks)


@dataclass(frozen=True)
class Budget:
    """What a sparse run may spend. Fractions are 0..1.

    top_p: attention mass that the kept blocks of each query block must hold.
    floor: fraction of the key blocks, by rank, that is kept whatever top_p says.
    max_density: cap on the kept fraction of the video keys of each video query block; it wins over the other two.
        Text and reference tokens, and the single best block, are kept all the same. A static pattern aims at it as
        a mean over the video (static.target_density).
    dense_first, dense_last: parts of the schedule (model_sampling percent) that stay dense at its ends.
    dense_blocks: transformer blocks that stay dense, counted through double and single blocks.
    min_tokens: shorter video sequences stay dense.
    profile: measured top_p and floor of every layer and head, in place of the two numbers here.
    """

    preset: str = CUSTOM
    top_p: float = 0.9
    floor: float = 0.05
    max_density: float = 1.0
    dense_first: float = 0.2
    dense_last: float = 0.0
    dense_blocks: frozenset[int] = frozenset()
    min_tokens: int = 12288
    profile: Profile | None = None

    def spending(self, top_p: float | None = None) -> Spending:
        """What a call may spend by these numbers, or with another top_p."""
        top_p = self.top_p if top_p is None else top_p
        return Spending(top_p, top_p >= 1, self.floor, self.max_density)

    def __post_init__(self) -> None:
        limits = {
            "top_p": (0.05, 1.0),
            "floor": (0.0, 1.0),
            "max_density": (0.01, 1.0),
            "dense_first": (0.0, 1.0),
            "dense_last": (0.0, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: expected a number from {low} to {high}, found {value}")
        if self.dense_first + self.dense_last > 1:
            raise ValueError(
                f"dense_first and dense_last: expected a sum of at most 1, found {self.dense_first} + {self.dense_last}"
            )
        if self.min_tokens < 0:
            raise ValueError(f"min_tokens: expected 0 or more, found {self.min_tokens}")

    def resolve(self, steps: int) -> Budget:
        """The concrete budget for a whole schedule of `steps`; only the preset auto depends on it."""
        if self.preset != AUTO:
            return self
        return replace(PRESETS[FEW_STEP if steps <= FEW_STEPS else "faithful"], profile=self.profile)


# Starting points taken from the published SVG2 settings (arXiv 2505.18875, 2603.08982); not tuned here.
PRESETS = {
    "faithful": Budget("faithful", 0.9, 0.10, 1.0, 0.2, 0.0, frozenset({0})),
    "balanced": Budget("balanced", 0.8, 0.05, 1.0, 0.2, 0.0, frozenset({0})),
    "turbo": Budget("turbo", 0.7, 0.03, 1.0, 0.3, 0.0, frozenset({0})),
    # What begins in the first tenth of the schedule keeps its first step dense (SigmaWindow).
    FEW_STEP: Budget(FEW_STEP, 0.9, 0.10, 1.0, 0.1, 0.0, frozenset({0})),
}
PRESETS[AUTO] = replace(PRESETS["faithful"], preset=AUTO)


def make_budget(preset: str, dense_blocks: str, profile: Profile | None = None, **numbers) -> Budget:
    """A named preset, or with `custom` a budget of the given numbers (fields of `Budget`); with a profile, if there is
    one.

    The numbers are checked even when a preset overrides them, so that a mistake never hides.
    """
    custom = Budget(CUSTOM, dense_blocks=parse_blocks(dense_blocks), **numbers)
    if preset == CUSTOM:
        return replace(custom, profile=profile)
    if preset not in PRESETS:
        raise ValueError(f"preset: expected one of {[*PRESETS, CUSTOM]}, found {preset!r}")
    return replace(PRESETS[preset], profile=profile)
