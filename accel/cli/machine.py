"""Where a table was measured."""

from __future__ import annotations

import platform

import torch

from ..version import PACK_VERSION


def machine(no_kernel_because: str) -> dict[str, str | None]:
    """The device, the software, and why no kernel can run ("" if one can)."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "platform": platform.platform(),
        "torch": torch.__version__,
        "pack": PACK_VERSION,
        "no_kernel_because": no_kernel_because or None,
    }
