"""Tiny random models of every enabled family inside real ComfyUI code, in this process."""

import importlib.util
import sys
from pathlib import Path

import pytest

# importlib mode puts no test folder on sys.path, so the builder is loaded by path.
_SPEC = importlib.util.spec_from_file_location("dit_accel_tiny_models", Path(__file__).with_name("tiny_models.py"))


@pytest.fixture(scope="session")
def tiny(comfy):
    """The module `tiny_models`, loaded after ComfyUI."""
    module = sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    """Triton's interpreter would make every CPU call `fast`: these tests see a machine without a GPU."""
    from dit_accel.kernels import registry

    monkeypatch.setattr(registry, "interpreted", lambda: False)
    registry.triton_problem.cache_clear()
    yield
    registry.triton_problem.cache_clear()


@pytest.fixture(autouse=True)
def _inference_mode():
    """ComfyUI executes nodes in inference mode."""
    import torch

    with torch.inference_mode():
        yield
