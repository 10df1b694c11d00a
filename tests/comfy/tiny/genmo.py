"""Tiny Mochi."""

from __future__ import annotations

import torch

from dit_accel.tests.comfy.tiny.case import Case
from dit_accel.tests.support.checkpoints.genmo import MOCHI


def _mask(rows: int, tokens: int) -> dict:
    """The first `tokens` of 20 text tokens are real."""
    return {"attention_mask": (torch.arange(20) < tokens).long().expand(rows, -1)}


CASES = [
    Case("mochi", "GenmoMochi", MOCHI, (1, 12, 5, 12, 14), 2, extra=20, conditions=lambda: _mask(1, 20)),
    Case("mochi padded text", "GenmoMochi", MOCHI, (1, 12, 5, 12, 14), 2, extra=13, conditions=lambda: _mask(1, 13)),
    Case(
        # Mochi adds the real tokens of both rows up and so attends the padding too.
        "mochi text mask of two rows",
        "GenmoMochi",
        MOCHI,
        (1, 12, 5, 12, 14),
        2,
        extra=20,
        conditions=lambda: _mask(2, 13),
    ),
]
