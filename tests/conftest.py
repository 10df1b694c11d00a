"""Shared fixtures: where ComfyUI is, and the rule that CI must never pass by skipping it."""

import os
import sys
from pathlib import Path

import pytest

# `python -m pytest` puts the root on the path, where our nodes/ would shadow ComfyUI's nodes.py.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

from dit_accel.accel.headless.embedded import import_comfyui  # noqa: E402
from dit_accel.accel.headless.server import find_comfyui, missing_comfyui  # noqa: E402


def pytest_configure(config):
    """Every tier but `gpu` runs the kernels in Triton's interpreter, whatever the machine has. Triton reads the
    variable when a kernel is defined, so the two cannot share a process."""
    os.environ["TRITON_INTERPRET"] = "0" if config.option.markexpr == "gpu" else "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Under CI a skipped test of the real thing is a failure."""
    report = yield
    folder = item.path.relative_to(ROOT).parts[1]
    if report.skipped and os.environ.get("CI") and folder in ("comfy", "server", "browser", "slow"):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI folder; without one the test is skipped, or fails where CI is set."""
    path = find_comfyui()
    if path is None:
        reason = missing_comfyui()
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def comfy(comfyui: Path):
    """ComfyUI's Python code, importable in this process (`import comfy...` after asking for this)."""
    sys.dont_write_bytecode = True
    import_comfyui(comfyui, "--cpu")

    return comfyui
