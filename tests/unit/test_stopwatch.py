"""Times of devices that this machine lacks."""

import pytest
import torch

from dit_accel.accel.attention.account.stopwatch import Stopwatch


@pytest.mark.parametrize("name", ["mps", "xpu"])
def test_a_device_is_waited_for_before_the_clock_is_read(monkeypatch, name):
    """Else a lap would be the time that it took to queue the work, and the race would be decided by that."""
    waits = []
    monkeypatch.setattr(getattr(torch, name), "synchronize", lambda: waits.append(name))
    watch = Stopwatch(torch.device(name))
    watch.mark()
    assert waits == [name, name] and len(watch.laps()) == 1
