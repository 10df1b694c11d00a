"""Tiny random models of every enabled family inside real ComfyUI code, in this process."""

import importlib

import pytest
import torch

from dit_accel.kernels import registry


@pytest.fixture(scope="session")
def tiny(comfy):
    """The package `tiny`, loaded after ComfyUI."""
    return importlib.import_module("dit_accel.tests.comfy.tiny")


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    """Triton's interpreter would make every CPU call `fast`: these tests see a machine without a GPU."""
    monkeypatch.setattr(registry, "interpreted", lambda: False)
    registry.triton_problem.cache_clear()
    yield
    registry.triton_problem.cache_clear()


@pytest.fixture(autouse=True)
def _inference_mode():
    """ComfyUI executes nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def case(tiny):
    return tiny.CASES[0]


@pytest.fixture(scope="module")
def model(case):
    with torch.inference_mode():
        return case.model()


@pytest.fixture
def half(tiny, model):
    """The model at half the attention mass."""
    return tiny.sparse(model, top_p=0.5, floor=0.0)
