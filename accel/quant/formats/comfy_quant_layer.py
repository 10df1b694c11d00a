"""One 4-bit layer of a comfy_quant file while it is read: every tensor is checked and taken once, every field too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..weight4 import Weight4
from .checks import FLOATS, expect
from .comfy_quant_markers import Config


class Layer:
    """`config`: the layer's JSON. `parts`: its tensors that are still to be taken, by their name within the layer."""

    def __init__(self, file: str, name: str, config: Config, parts: dict[str, Tensor]):
        self.file, self.name, self.config, self.parts = file, name, config, dict(parts)

    def error(self, part: str, expected: object, actual: object) -> ValueError:
        """What to raise when a tensor or a field is not what it must be."""
        return ValueError(f"{self.file}: {self.name}.{part}: expected {expected}, found {actual}")

    def allow_fields(self, known: Sequence[str]) -> None:
        """Raises ValueError where the JSON has a field that is not known."""
        for field, value in self.config.items():
            if field not in known:
                raise self.error("comfy_quant", f"only the fields {', '.join(known)}", f"{field!r}: {value!r}")

    def field(self, field: str, *allowed: Any) -> Any:
        """The field's value, or the first of those allowed where the JSON has none. Raises ValueError."""
        value = self.config.get(field, allowed[0])
        if value not in allowed:
            raise self.error(f"comfy_quant: {field}", " or ".join(map(repr, allowed)), repr(value))
        return value

    def take(self, names: str | tuple[str, ...], dtypes: Sequence[torch.dtype], *shape: int | None) -> Tensor:
        """The tensor of one of the names. Raises ValueError where it is missing, there twice or not as it must be."""
        names = (names,) if isinstance(names, str) else names
        present = [name for name in names if name in self.parts]
        if not present:
            raise self.error(names[0], "this tensor", "none")
        if len(present) > 1:
            raise self.error(present[0], "it under one name", f"also {present[1]}")
        tensor = self.parts.pop(present[0])
        expect(f"{self.file}: {self.name}.{present[0]}", tensor, dtypes, *shape)
        return tensor

    def take_if_there(self, name: str, dtypes: Sequence[torch.dtype], *shape: int | None) -> Tensor | None:
        """As `take`, or None where there is none."""
        return self.take(name, dtypes, *shape) if name in self.parts else None

    def checked_codes(self, codes: Tensor) -> Tensor:
        """The same codes, int8 [N, K / 2]. Raises ValueError where K is no multiple of 64, or there are none."""
        rows, columns = codes.shape[0], 2 * codes.shape[1]
        if not codes.numel() or columns % 64:
            raise self.error("weight", "codes of a multiple of 64 input channels", f"{rows} x {columns}")
        return codes

    def take_smooth(self, columns: int, *names: str) -> Tensor:
        """The divisor of the input, [K]."""
        smooth = self.take(names, FLOATS, columns)
        if not smooth.all():
            raise self.error(names[0], "divisors", "zero")
        return smooth

    def take_channel_scale(self, rows: int) -> Tensor | None:
        """fp32 [N] or [1], where there is one."""
        name = "weight_channel_scale"
        single = name in self.parts and self.parts[name].shape == (1,)
        return self.take_if_there(name, (torch.float32,), 1 if single else rows)

    def take_bias(self, rows: int) -> Tensor | None:
        """[N], where there is one; fp64 where no narrower type holds a shift exactly."""
        return self.take_if_there("bias", (*FLOATS, torch.float64), rows)

    def is_tiled(self) -> bool:
        """Whether `weight` has four axes, as comfy-kitchen tells its tiles from the natural order."""
        return "weight" in self.parts and self.parts["weight"].ndim == 4

    def groups(self, codes: Tensor, default: int | None = None) -> int:
        """How many groups of the JSON's `group_size` there are along K. Raises ValueError."""
        columns = 2 * codes.shape[1]
        size = self.config.get("group_size", default)
        if type(size) is not int or size < 1 or columns % size:
            raise self.error("comfy_quant: group_size", f"a divisor of {columns} input channels", repr(size))
        return columns // size

    def end(self, weight: Weight4) -> None:
        """Raises ValueError where the JSON contradicts what was read, or a tensor was left over."""
        self.field("rank", weight.rank)
        self.field("orig_shape", list(weight.shape))
        for part in self.parts:
            raise self.error(part, "no such tensor", "one")
