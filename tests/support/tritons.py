"""The Tritons that the kernels are compiled with, unpacked side by side; .ci/run fetches them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The last of most minor versions from registry.TRITONS' oldest to its newest.
VERSIONS = ("3.3.1", "3.4.0", "3.5.1", "3.6.0", "3.7.1", "3.9.0")


def unpacked_triton(version: str) -> Path:
    """The folder to put first on Python's path. Without it the test is skipped, or fails where CI is set."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = Path(os.environ.get("DIT_ACCEL_TRITONS", cache / "dit-accel-ci" / "tritons")) / version
    if not (folder / "triton").is_dir():
        reason = f"no triton {version}: pip install --no-deps --target {folder} triton=={version}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
