"""Memory of a computation on fake or real tensors, traced tensor by tensor."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that are alive, and their peak; those of `inputs`, and the result, a tensor that is made in
    the shape `result`, do not count."""

    def __init__(self, *inputs: torch.Tensor, result: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self._result = result
        self.live = 0
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in inputs}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.shape == self._result:
                self._known.add(tensor.untyped_storage()._cdata)
            elif isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone():
            self._known.discard(key)
            self.live -= size

        weakref.finalize(storage, gone)
