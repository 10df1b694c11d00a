"""Where a table was measured."""

from __future__ import annotations

import platform
import subprocess

import torch

from ..version import PACK_VERSION
from . import versions


def machine(no_kernel_because: str) -> dict[str, str | None]:
    """The device, the software, and why no kernel can run ("" if one can). driver: NVIDIA's; None where there is none
    or where nvidia-smi cannot say."""
    gpu = torch.cuda.is_available()
    triton = versions.triton()
    return {
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "platform": platform.platform(),
        "torch": torch.__version__,
        "triton": triton and triton[0],
        "driver": _driver() if gpu else None,
        "pack": PACK_VERSION,
        "no_kernel_because": no_kernel_because or None,
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.splitlines()[0].strip()
