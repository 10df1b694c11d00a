"""Versions of what is installed, by its distribution's name: nothing is imported."""

from __future__ import annotations

import importlib.metadata

TRITONS = ("triton", "triton-windows", "pytorch-triton-rocm", "triton-rocm")


def version(distribution: str) -> str | None:
    """None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def triton() -> tuple[str, str] | None:
    """Version and distribution of Triton, which goes by several names; None where there is none."""
    for distribution in TRITONS:
        if installed := version(distribution):
            return installed, distribution
    return None
