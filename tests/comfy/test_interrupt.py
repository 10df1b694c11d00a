"""A user stops a run while a sparse call is under way on the CPU."""

import threading
import time

import pytest

from dit_accel.kernels import gathered_attention
from dit_accel.kernels.gathered_attention import _Head


def test_a_long_call_is_interrupted_within_a_second(tiny, case, monkeypatch):
    import comfy.model_management as management

    attend = _Head.attend
    began = threading.Event()

    def slow(self, *args):
        began.set()
        time.sleep(0.05)
        attend(self, *args)

    def stop():
        began.wait(60)
        stopped.append(time.monotonic())
        management.interrupt_current_processing(True)

    stopped = []
    monkeypatch.setattr(_Head, "attend", slow)
    monkeypatch.setattr(gathered_attention, "ROWS", 1)  # hundreds of tasks
    sparse = tiny.sparse(case.model())
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(management.InterruptProcessingException):
        tiny.sample(sparse, case)
    assert time.monotonic() - stopped[0] < 1
    assert not management.processing_interrupted(), "the next run would be stopped too"
    assert tiny.history(sparse)[-1].sparse == {}
