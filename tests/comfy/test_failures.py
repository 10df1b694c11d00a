"""Runs that die or cannot be sparse: nothing stays behind, nothing gets worse."""

import gc
import subprocess

import pytest
import torch
import triton.runtime.errors

from dit_accel.accel.attention import executor, reasons
from dit_accel.accel.attention.memory import TensorCache
from dit_accel.accel.attention.planners import PATTERNS, Pattern
from dit_accel.kernels import registry

LAYERS = 2  # of the model


def test_without_a_gpu_dense_is_the_default_and_error_stops(tiny, case, model, monkeypatch):
    monkeypatch.setattr(registry, "choose", lambda *_, **__: (None, "no GPU"))
    dense = tiny.sparse(model, fallback="dense")
    assert torch.equal(tiny.sample(dense, case), tiny.sample(model, case))
    assert tiny.history(dense)[0].dense[f"{reasons.NO_KERNEL}: no GPU"] == LAYERS * 2
    with pytest.raises(RuntimeError, match=r"fallback is set to error.*no GPU"):
        tiny.sample(tiny.sparse(model, fallback="error"), case)


def live_tensors() -> int:
    gc.collect()
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


def test_runs_repeat_and_leave_no_tensor(tiny, case, half):
    first = tiny.sample(half, case)
    before = live_tensors()
    second = tiny.sample(half, case)
    assert torch.equal(first, second)
    del second
    assert live_tensors() == before


@pytest.fixture
def failing(monkeypatch):
    """Makes the n-th executed call from now on raise; returns the list of attempts."""

    def install(error: Exception, at: int) -> list:
        execute, attempts = executor.execute, []

        def fail(*args, **kwargs):
            attempts.append(1)
            if len(attempts) == at:
                raise error
            return execute(*args, **kwargs)

        monkeypatch.setattr(executor, "execute", fail)
        return attempts

    return install


@pytest.mark.parametrize("kind", ["exception", "interrupt"])
def test_a_run_that_dies_leaves_nothing_behind(tiny, case, model, failing, kind):
    import comfy.model_management

    half = tiny.sparse(model, top_p=0.5, floor=0.0, fallback="error")
    whole = tiny.sample(half, case)
    before = live_tensors()
    interrupt = comfy.model_management.InterruptProcessingException()
    error = interrupt if kind == "interrupt" else RuntimeError("boom")
    attempts = failing(error, at=3)
    with pytest.raises(type(error)):
        tiny.sample(half, case)
    assert len(attempts) == 3
    error.__traceback__ = None
    assert live_tensors() == before
    assert torch.equal(whole, tiny.sample(half, case))


def test_out_of_memory_makes_the_forward_dense_and_goes_on(tiny, case, half, monkeypatch, failing):
    whole = tiny.sample(half, case)
    clear, freed = TensorCache.clear, []
    with monkeypatch.context() as patched:
        patched.setattr(TensorCache, "clear", lambda self: (freed.append(len(self)), clear(self)))
        failing(torch.OutOfMemoryError("stand-in"), at=3)
        assert tiny.sample(half, case).isfinite().all()
    assert len(freed) == 2, "the state is freed before the dense call and at the end"
    assert freed[0] > 0
    run = tiny.history(half)[-1]
    assert run.dense[reasons.OUT_OF_MEMORY] == LAYERS
    assert run.sparse_calls == LAYERS
    assert torch.equal(whole, tiny.sample(half, case))


@pytest.mark.parametrize(
    "error",
    [
        triton.runtime.errors.OutOfResources(300000, 232448, "shared memory"),
        subprocess.CalledProcessError(1, "gcc"),
        ImportError("libcuda.so.1: cannot open shared object file"),
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_kernel_that_cannot_run_is_not_tried_again(tiny, case, model, monkeypatch, error, backend):
    def stand_in(call, budget):
        attempts.append(call.backend)
        raise error

    attempts = []
    monkeypatch.setattr(registry, "choose", lambda *_, **__: (backend, ""))
    monkeypatch.setitem(PATTERNS, "svg2", Pattern(stand_in))
    sparse = tiny.sparse(model, fallback="dense")
    assert torch.equal(tiny.sample(sparse, case, steps=3), tiny.sample(model, case, steps=3))
    assert attempts == [backend]
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == 0
    assert sum(count for reason, count in run.dense.items() if type(error).__name__ in reason) == 3 * LAYERS
    with pytest.raises(type(error)):
        tiny.sample(tiny.sparse(model, fallback="error"), case)
