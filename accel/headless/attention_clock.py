"""How long a model's video self-attention takes where nothing else is changed."""

from __future__ import annotations

from ..attention.account.stopwatch import Stopwatch
from ..comfy.sparse.override import OVERRIDE_KEY


class AttentionClock:
    """Times the calls in which queries and keys have one shape, which tells self-attention over the video from
    cross-attention wherever the text has another length. Nothing waits for the device until the times are read."""

    def __init__(self) -> None:
        self._watches: list[Stopwatch] = []

    def attach(self, model):
        """A clone of the ModelPatcher `model` whose calls are timed and else are what they were."""
        clone = model.clone()
        clone.model_options.setdefault("transformer_options", {})[OVERRIDE_KEY] = self._timed
        return clone

    def milliseconds(self, calls: int) -> float:
        """All that the last `calls` calls took. Raises ValueError where there were not as many."""
        if len(self._watches) < calls:
            raise ValueError(f"expected {calls} calls of self-attention, found {len(self._watches)}")
        return 1000 * sum(watch.laps()[0] for watch in self._watches[-calls:])

    def _timed(self, func, q, k, v, heads, *args, **options):
        if q.shape != k.shape:
            return func(q, k, v, heads, *args, **options)
        watch = Stopwatch(q.device)
        out = func(q, k, v, heads, *args, **options)
        watch.mark()
        self._watches.append(watch)
        return out
