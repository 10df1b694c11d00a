"""What Triton's interpreter must be cured of before its answers can be compared."""

import numpy as np
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


@pytest.fixture
def bf16_as_hardware_computes_it(monkeypatch):
    """The interpreter multiplies the bit patterns of bfloat16, and cuts off where it should round to it."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert_float, create_dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert(x, source, target, rounding):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert_float(x, source, target, rounding)
        return torch.from_numpy(x.copy()).bfloat16().view(torch.uint16).numpy()

    def dot(self, a, b, *how):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (self.cast_impl(x, tl.float32) for x in (a, b))
        return create_dot(self, a, b, *how)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@pytest.fixture
def maxima_as_hardware_takes_them(monkeypatch):
    """The larger of a number and NaN is the number; the interpreter's is NaN."""
    from triton.runtime.interpreter import InterpreterBuilder

    monkeypatch.setattr(InterpreterBuilder, "create_maxnumf", lambda self, a, b: self.binary_op(a, b, np.fmax))
    monkeypatch.setattr(InterpreterBuilder, "create_minnumf", lambda self, a, b: self.binary_op(a, b, np.fmin))
