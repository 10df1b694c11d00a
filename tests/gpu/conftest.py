"""The gpu tier means the device: Triton's interpreter must not stand in for it."""

import pytest

from dit_accel.kernels import registry


@pytest.fixture(autouse=True)
def _on_the_device():
    if registry.interpreted():
        pytest.fail("Triton's interpreter is on: run this tier alone, as `pytest -m gpu`")
