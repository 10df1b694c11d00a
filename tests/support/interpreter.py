"""What Triton's interpreter must be cured of before its answers can be compared."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fp8_as_hardware_rounds_it(monkeypatch):
    """The interpreter loses the carry when rounding to FP8 (0.4846 becomes 0.25)."""
    # Not at the top: Triton must not be imported before the interpreter is chosen.
    import triton.language as tl
    from triton.runtime import interpreter

    convert_float = interpreter._convert_float

    def convert(x, source, target, rounding):
        if target != tl.float8e4nv:
            return convert_float(x, source, target, rounding)
        rounded = torch.from_numpy(x.copy()).clamp(-448, 448).to(torch.float8_e4m3fn)
        return rounded.view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)
