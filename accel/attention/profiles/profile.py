"""A budget profile: the top_p of every layer and head that meets a target, as measured on the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard

from ...files import read_json, write_json
from ...messages import short

FORMAT, VERSION = "dit-accel/profile", 1
ERROR, SPEED = "error", "speed"
# The least top_p of a budget.
LEAST_TOP_P = 0.05


@dataclass(frozen=True)
class Profile:
    """model: name of the network's class. layers: block numbers [L]. calls: of video self-attention in a forward.
    floor, max_density: as in `Budget`. top_p [L][heads], 0.05 to 1; 1 keeps everything. density, error [L]: what was
    expected of each layer, the mean over noise levels: the error is the relative L2 of the attention output, and is
    what the guard holds the layer to. target: `error` or `speed`; target_value: what was asked; met: whether it is
    expected to be met. note: the prediction, in words."""

    pattern: str
    model: str
    layers: tuple[int, ...]
    calls: int
    heads: int
    floor: float
    max_density: float
    top_p: tuple[tuple[float, ...], ...]
    density: tuple[float, ...]
    error: tuple[float, ...]
    target: str
    target_value: float
    met: bool
    note: str = ""

    def check(self, model: str, calls: int, heads: int, pattern: str) -> None:
        """Raises ValueError naming both sides when the profile was measured on something else."""
        if (self.model, self.calls, self.heads, self.pattern) != (model, calls, heads, pattern):
            raise ValueError(
                f"profile: measured on {self.model} with {self.calls} attention layers of {self.heads} heads and "
                f"{self.pattern}, found {model} with {calls} layers of {heads} heads and {pattern}"
            )

    def row(self, layer: int) -> tuple[float, ...]:
        """The top_p of each head of the block `layer`. Raises ValueError when the block was not measured."""
        return self.top_p[self._place(layer)]

    def promised(self, layer: int) -> float:
        """The relative L2 that the block's attention output is held to: what was expected of it, but no less than a
        target for all. Raises ValueError as `row` does."""
        expected = self.error[self._place(layer)]
        return max(expected, self.target_value) if self.target == ERROR else expected

    def _place(self, layer: int) -> int:
        if layer not in self.layers:
            raise ValueError(
                f"profile: measured on {len(self.layers)} blocks of {self.model}, from {self.layers[0]} to "
                f"{self.layers[-1]}, found block {layer}"
            )
        return self.layers.index(layer)


def check_target(target: str, value: float) -> None:
    """Raises ValueError naming the input, what was expected and what was found."""
    if target not in _TARGETS:
        raise ValueError(f"target: expected one of {list(_TARGETS)}, found {target!r}")
    right, expected = _TARGETS[target]
    if not _number(value) or not right(value):
        raise ValueError(f"target_value: expected {expected}, found {value!r}")


def write_profile(path: Path, profile: Profile) -> None:
    write_json(path, FORMAT, VERSION, asdict(profile))


def read_profile(path: Path) -> Profile:
    """Reads what `write_profile` wrote. Raises ValueError naming the file, what was expected and what was found."""
    content = read_json(path, FORMAT, VERSION)
    try:
        return _profile(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _profile(content: dict[str, Any]) -> Profile:
    """Checked in this order: later rules rely on what earlier ones have seen."""
    for name, (right, expected) in _RULES.items():
        if name not in content:
            raise ValueError(f"{name}: expected {expected}, found nothing")
        if not right(content[name]):
            raise ValueError(f"{name}: expected {expected}, found {short(content[name])}")
    layers, heads = content["layers"], content["heads"]
    for name in ("top_p", "density", "error"):
        if len(content[name]) != len(layers):
            raise ValueError(f"{name}: expected one for each of {len(layers)} layers, found {len(content[name])}")
    for layer, row in zip(layers, content["top_p"], strict=True):
        if not isinstance(row, list) or len(row) != heads or not all(_within(LEAST_TOP_P, 1)(p) for p in row):
            raise ValueError(
                f"top_p: expected numbers from {LEAST_TOP_P} to 1 for {heads} heads in the row of block {layer}, "
                f"found {short(row)}"
            )
    check_target(content["target"], content["target_value"])
    values = {item.name: content[item.name] for item in fields(Profile)}
    for name in ("layers", "density", "error"):
        values[name] = tuple(values[name])
    return Profile(**{**values, "top_p": tuple(tuple(row) for row in content["top_p"])})


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _within(low: float, high: float) -> Callable[[object], bool]:
    return lambda value: _number(value) and low <= value <= high


def _list_of(right: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(right, value))


def _block_numbers(value: object) -> bool:
    if not isinstance(value, list) or not all(type(number) is int and number >= 0 for number in value):
        return False
    return value != [] and value == sorted(set(value))


def _count(value: object) -> bool:
    return type(value) is int and value > 0


def _text(value: object) -> bool:
    return isinstance(value, str)


_Rules = dict[str, tuple[Callable[[Any], bool], str]]

_TARGETS: _Rules = {
    ERROR: (lambda value: 0 < value <= 1, "an error above 0 and up to 1"),
    SPEED: (lambda value: value > 1, "a finite factor above 1"),
}

_RULES: _Rules = {
    "pattern": (_text, "the name of a pattern"),
    "model": (_text, "the name of a model's class"),
    "layers": (_block_numbers, "block numbers, rising"),
    "calls": (_count, "a number of calls"),
    "heads": (_count, "a number of heads"),
    "floor": (_within(0, 1), "a number from 0 to 1"),
    "max_density": (_within(0.01, 1), "a number from 0.01 to 1"),
    "top_p": (lambda value: isinstance(value, list), "a row of numbers for each layer"),
    "density": (_list_of(_within(0, 1)), "a number from 0 to 1 for each layer"),
    "error": (_list_of(_within(0, math.inf)), "a finite number, 0 or more, for each layer"),
    "target": (_text, "a target's name"),
    "target_value": (_number, "a number"),
    "met": (lambda value: isinstance(value, bool), "true or false"),
    "note": (_text, "text"),
}
