"""How messages show what was found."""

from __future__ import annotations


def short(value: object) -> str:
    """A value of a file or an input, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
