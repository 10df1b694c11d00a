"""Allocations of a computation, and failing ones."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
OURS = (ROOT / "accel", ROOT / "kernels")
# outer_sample, apply_model, compute, apply, attention_override and what it calls.
CALL = 6


@functools.cache
def _inside(file: str, folder: Path) -> bool:
    return Path(file).resolve().is_relative_to(folder)


def is_ours(file: str) -> bool:
    return any(_inside(file, folder) for folder in OURS)


def _storages(tree) -> set[int]:
    return {leaf.untyped_storage()._cdata for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


class Place(NamedTuple):
    """Where a tensor is made: the innermost line of ComfyUI's code or ours. functions: names of ours on the way there,
    the innermost first."""

    file: str
    line: int
    functions: tuple[str, ...]

    @property
    def ours(self) -> bool:
        return is_ours(self.file)

    @property
    def way(self) -> tuple:
        """The line and the way to it, without what lies deeper in our code than the start of a call."""
        return self.file, self.line, self.functions[-CALL:]

    @classmethod
    def here(cls, comfyui: Path) -> Place:
        innermost, functions = None, []
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if innermost is None and (is_ours(file) or _inside(file, comfyui)):
                innermost = file, frame.f_lineno
            if is_ours(file):
                functions.append(frame.f_code.co_name)
            frame = frame.f_back
        return cls(*(innermost or ("", 0)), tuple(functions))


class Allocations(TorchDispatchMode):
    """Counts operators that make tensors; with `within`, those in our function of that name. The one after `spared` of
    them raises torch.OutOfMemoryError. With comfyui, its folder, their `places` are listed."""

    def __init__(self, spared: int | None = None, within: str | None = None, comfyui: Path | None = None) -> None:
        super().__init__()
        self.count = 0
        self.places: list[Place] = []
        self.error = torch.OutOfMemoryError("stand-in")
        self._spared = spared
        self._within = within
        self._comfyui = None if comfyui is None else comfyui.resolve()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        # By storage: in inference mode operators such as `to` and `reshape`, which may copy, arrive here whole.
        if _storages(out) - _storages((args, kwargs)):
            self._made()
        return out

    def _made(self) -> None:
        if self._within is not None and self._within not in Place.here(ROOT).functions:
            return
        self.count += 1
        if self._comfyui is not None:
            self.places.append(Place.here(self._comfyui))
        if self.count - 1 == self._spared:
            raise self.error


def one_each(places: Sequence[Place], known: set[tuple]) -> list[int]:
    """The first allocation at each line that is reached by one way into our code, but for those ways that are `known`;
    then they are. Loops repeat them many times. Of the model's own, every eighth of the lines."""
    first = {place.way: number for number, place in reversed(list(enumerate(places)))}
    new = sorted(number for way, number in first.items() if way not in known)
    known.update(first)
    theirs = [number for number in new if not places[number].ours]
    return [number for number in new if places[number].ours or theirs.index(number) % 8 == 0]
