"""Times of what a device does, without waiting for it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Marks moments of one call without a host sync: CUDA events on a GPU, the clock elsewhere. What other devices do
    (MPS, XPU) is waited for at each mark, or the clock would tell when it was queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._wait = None if self._cuda else getattr(getattr(torch, device.type, None), "synchronize", None)
        self._marks: list = []
        self.mark()

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            # Of this device: the thread's own may be another.
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            if self._wait is not None:
                self._wait()
            self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds between successive marks; on a GPU waits until the work between them has ended."""
        if self._cuda:
            self._marks[-1].synchronize()
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        return [a.elapsed_time(b) / 1000 if self._cuda else b - a for a, b in pairs]
