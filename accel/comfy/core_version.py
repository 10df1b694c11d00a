"""Which ComfyUI the pack needs."""

from __future__ import annotations

import re

from ..version import PACK_VERSION

# As pyproject.toml tells the registry.
OLDEST_CORE = "0.33.0"


def need_core() -> None:
    """Raises RuntimeError, with both versions, in a ComfyUI that is too old; one without a version passes."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        return
    numbers = _numbers(version)
    if numbers and numbers < _numbers(OLDEST_CORE):
        raise RuntimeError(
            f"DiT Accel {PACK_VERSION} needs ComfyUI {OLDEST_CORE} or newer, and this is ComfyUI {version}: update "
            "ComfyUI, then start it again"
        )


def _numbers(version: str) -> list[int]:
    """Major, minor and patch, as far as they are given."""
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
