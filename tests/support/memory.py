"""Memory of a computation on fake or real tensors: the counter that benches use where the device keeps no count."""

from dit_accel.tests.bench.live_memory import LiveMemory

__all__ = ["LiveMemory"]
