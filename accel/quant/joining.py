"""Linear layers put together and cut apart, where a file and a model group them differently.

4-bit and plain weights alike. Nothing is quantised again: the result computes what its parts compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .weight4 import Weight4


class Linear(NamedTuple):
    """A linear layer: its name, for messages, its weight [N, K] and its plain bias [N]."""

    name: str
    weight: Weight4 | Tensor
    bias: Tensor | None


def stack(parts: Sequence[Linear]) -> list[Linear]:
    """Layers of one input as one layer, outputs one after another: one layer [sum of N, K].

    Raises ValueError naming the layers where they differ in what one layer cannot have two of: the smoothing, the
    grid, the group, which inputs are unsigned, being 4-bit at all.
    """
    quantised = _agree(parts, "kind of weight", lambda part: isinstance(part.weight, Weight4))
    weight = _stack_quantised(parts) if quantised else torch.cat([part.weight for part in parts])
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat([_zeros_for(part) if part.bias is None else part.bias for part in parts])
    return [Linear(_names(parts), weight, bias)]


def side_by_side(parts: Sequence[Linear]) -> list[Linear]:
    """Layers whose outputs are added as one layer of their inputs one after another: one layer [N, sum of K]. The sum
    of the biases is fp32.

    Raises ValueError as `stack` does.
    """
    quantised = _agree(parts, "kind of weight", lambda part: isinstance(part.weight, Weight4))
    _agree(parts, "number of outputs", lambda part: part.weight.shape[0])
    weight = _join_quantised(parts) if quantised else torch.cat([part.weight for part in parts], dim=1)
    biases = [part.bias.float() for part in parts if part.bias is not None]
    return [Linear(_names(parts), weight, sum(biases) if biases else None)]


def cut(linear: Linear, parts: int) -> list[Linear]:
    """A layer cut into `parts` layers of N / parts outputs. 4-bit ones share the tensors `smooth` and `proj_down`:
    who runs them can tell that they need one quantised input and one down-projection."""
    rows = linear.weight.shape[0] // parts
    if linear.weight.shape[0] % parts:
        raise ValueError(f"{linear.name}: expected outputs in {parts} equal parts, found {linear.weight.shape[0]}")
    spans = [slice(rows * part, rows * (part + 1)) for part in range(parts)]
    return [
        Linear(
            linear.name,
            _rows(linear.weight, span) if isinstance(linear.weight, Weight4) else linear.weight[span],
            None if linear.bias is None else linear.bias[span],
        )
        for span in spans
    ]


def swap_halves(linear: Linear) -> Linear:
    """A plain layer with the two halves of its outputs in the other order."""
    weight, bias = (None if each is None else torch.cat(each.chunk(2)[::-1]) for each in linear[1:])
    return Linear(linear.name, weight, bias)


def _names(parts: Sequence[Linear]) -> str:
    return " and ".join(part.name for part in parts)


def _agree(parts: Sequence[Linear], what: str, value):
    """The value that all parts have."""
    values = [value(part) for part in parts]
    if any(each != values[0] for each in values):
        raise ValueError(f"{_names(parts)}: expected one {what}, found {' and '.join(map(str, values))}")
    return values[0]


def _zeros_for(part: Linear) -> Tensor:
    return torch.zeros(part.weight.shape[0])


def _stack_quantised(parts: Sequence[Linear]) -> Weight4:
    weights = [part.weight for part in parts]
    first = weights[0]
    _agree(parts, "number of inputs", lambda part: part.weight.shape[1])
    _agree_on_grid(parts)
    _agree(parts, "start of the unsigned inputs", lambda part: part.weight.unsigned_from)
    if not all(_same(weight.smooth, first.smooth) for weight in weights):
        raise ValueError(f"{_names(parts)}: expected one smoothing of their common input, found different ones")
    channel_scale = None
    if any(weight.channel_scale is not None for weight in weights):
        channel_scale = torch.cat([_channel_scale(weight).expand(weight.shape[0]) for weight in weights])
    down, up = first.proj_down, None
    if all(_same(weight.proj_down, down) for weight in weights):
        up = None if down is None else torch.cat([weight.proj_up for weight in weights])
    else:
        down = torch.cat([_low_rank(weight)[0] for weight in weights], dim=1)
        up = torch.block_diag(*(_low_rank(weight)[1] for weight in weights))
    return Weight4(
        torch.cat([weight.codes for weight in weights]),
        torch.cat([weight.scale for weight in weights], dim=1),
        first.grid,
        None if first.zero is None else torch.cat([weight.zero for weight in weights], dim=1),
        channel_scale,
        first.smooth,
        down,
        up,
        first.unsigned_from,
    )


def _join_quantised(parts: Sequence[Linear]) -> Weight4:
    _agree_on_grid(parts)
    unsigned_from = _unsigned_from(parts)
    weights = _with_one_channel_scale([part.weight for part in parts])
    first = weights[0]
    smooth = None
    if any(weight.smooth is not None for weight in weights):
        smooth = torch.cat([_smooth(weight) for weight in weights])
    down = up = None
    if any(weight.rank for weight in weights):
        down = torch.block_diag(*(_low_rank(weight)[0] for weight in weights))
        up = torch.cat([_low_rank(weight)[1] for weight in weights], dim=1)
    joined = Weight4(
        torch.cat([weight.codes for weight in weights], dim=1),
        torch.cat([weight.scale for weight in weights]),
        first.grid,
        None if first.zero is None else torch.cat([weight.zero for weight in weights]),
        first.channel_scale,
        smooth,
        down,
        up,
        unsigned_from,
    )
    if unsigned_from is not None:
        # The cached property, which takes long to compute, is that of the parts.
        vars(joined)["shift"] = sum(part.weight.shift for part in parts if part.weight.unsigned_from is not None)
    return joined


def _agree_on_grid(parts: Sequence[Linear]) -> None:
    _agree(parts, "grid", lambda part: part.weight.grid)
    _agree(parts, "group", lambda part: part.weight.group)
    _agree(parts, "kind of zero", lambda part: part.weight.zero is not None)


def _unsigned_from(parts: Sequence[Linear]) -> int | None:
    """Where the unsigned inputs of the parts side by side begin: they must be the last ones."""
    begin, start = None, 0
    for part in parts:
        columns, own = part.weight.shape[1], part.weight.unsigned_from
        if begin is not None and own != 0:
            raise ValueError(f"{_names(parts)}: expected the unsigned inputs to be the last, found them in between")
        if own is not None and begin is None:
            begin = start + own
        start += columns
    return begin


def _with_one_channel_scale(weights: list[Weight4]) -> list[Weight4]:
    """The same weights with channel scales that are equal.

    Scales of whole tensors meet in the smoothing, as their ratio to the first one: that keeps the smoothed inputs
    near the size that the activations' own micro-scales can hold. Scales of channels go into the scales, in fp32.
    """
    if all(_same(weight.channel_scale, weights[0].channel_scale) for weight in weights):
        return weights
    scales = [_channel_scale(weight) for weight in weights]
    if all(scale.numel() == 1 for scale in scales):
        return [
            replace(weight, channel_scale=scales[0], smooth=_smooth(weight).float() * (scales[0] / scale))
            for weight, scale in zip(weights, scales, strict=True)
        ]
    return [
        replace(weight, channel_scale=None, scale=weight.scale.float() * scale)
        for weight, scale in zip(weights, scales, strict=True)
    ]


def _rows(weight: Weight4, span: slice) -> Weight4:
    scale = weight.channel_scale
    return replace(
        weight,
        codes=weight.codes[span],
        scale=weight.scale[:, span].contiguous(),
        zero=None if weight.zero is None else weight.zero[:, span].contiguous(),
        channel_scale=scale if scale is None or scale.numel() == 1 else scale[span],
        proj_up=None if weight.proj_up is None else weight.proj_up[span],
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _channel_scale(weight: Weight4) -> Tensor:
    return weight.codes.new_ones(1, dtype=torch.float32) if weight.channel_scale is None else weight.channel_scale


def _smooth(weight: Weight4) -> Tensor:
    return weight.codes.new_ones(weight.shape[1], dtype=torch.float32) if weight.smooth is None else weight.smooth


def _low_rank(weight: Weight4) -> tuple[Tensor, Tensor]:
    """proj_down and proj_up, of rank zero where there are none."""
    if weight.rank:
        return weight.proj_down, weight.proj_up
    rows, columns = weight.shape
    return weight.scale.new_empty(columns, 0), weight.scale.new_empty(rows, 0)
