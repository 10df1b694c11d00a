"""One activation quantisation for layers that read the same input in the same way: q, k and v.

Siblings are layers of one parent whose smoothing, and for W4A4 whose down-projection, are equal. Of all quantised
activations only the last one made is kept, in each thread: comfy-kitchen's CUDA backend writes them into a buffer that
it uses again, so an older one may hold another layer's numbers. It is freed when the last sibling has used it, when
another is made, and when its input is gone.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .compute import W4A4, W4A16
from .weight4 import Weight4


class Sibling(NamedTuple):
    """One layer of a group. group: the names of all of them, the same object for each; name: this one's."""

    group: tuple[str, ...]
    name: str


class _Cached(NamedTuple):
    """result: of `make` for the input `source` at this version; waiting: the siblings that have not used it yet."""

    source: weakref.ref
    version: int | None
    group: tuple[str, ...]
    waiting: set[str]
    result: Any


class _Latest(threading.local):
    cached: _Cached | None = None


_latest = _Latest()


def siblings(weights: Mapping[str, Weight4], path: str) -> dict[str, Sibling]:
    """Which of the layers `name -> weight`, all computed on `path`, can share; those that cannot are left out."""
    if path == W4A16:
        return {}
    groups: list[list[str]] = []
    for name, weight in weights.items():
        for group in groups:
            if _parent(name) == _parent(group[0]) and _alike(weight, weights[group[0]], path):
                group.append(name)
                break
        else:
            groups.append([name])
    return {name: Sibling(names, name) for names in map(tuple, groups) if len(names) > 1 for name in names}


def shared(x: Tensor, sibling: Sibling | None, make: Callable[[], Any]) -> Any:
    """make(), or what a sibling made of this very tensor, unchanged since. Nothing is kept while torch.compile traces;
    inference tensors count no changes, so there each sibling is answered once for one call of make."""
    if torch.compiler.is_compiling():
        return make()
    version = None if x.is_inference() else x._version
    cached = _latest.cached
    if (
        sibling is not None
        and cached is not None
        and cached.source() is x
        and cached.version == version
        and cached.group is sibling.group
        and sibling.name in cached.waiting
    ):
        cached.waiting.discard(sibling.name)
        if not cached.waiting:
            _latest.cached = None
        return cached.result
    _latest.cached = None
    result = make()
    if sibling is not None:
        waiting = set(sibling.group) - {sibling.name}
        _latest.cached = _Cached(weakref.ref(x, _forget), version, sibling.group, waiting, result)
    return result


def _forget(source: weakref.ref) -> None:
    if _latest.cached is not None and _latest.cached.source is source:
        _latest.cached = None


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _alike(a: Weight4, b: Weight4, path: str) -> bool:
    alike = a.shape[1] == b.shape[1] and a.unsigned_from == b.unsigned_from and _equal(a.smooth, b.smooth)
    return alike and (path != W4A4 or _equal(a.proj_down, b.proj_down))


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))
