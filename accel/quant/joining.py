"""Linear layers put together and cut apart, where a file and a model group them differently.

4-bit and plain weights alike. Nothing is quantised again: the result computes what its parts compute.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .weight4 import Weight4, dequantise


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
    quantised, plain = _weights(parts)
    weight = _stack_quantised(parts, quantised) if quantised else torch.cat(plain)
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat([_zeros_for(part) if part.bias is None else part.bias for part in parts])
    return [Linear(_names(parts), weight, bias)]


def stack_expanded(parts: Sequence[Linear]) -> list[Linear]:
    """As `stack`; parts that no single 4-bit layer can hold, such as those of unlike smoothing or of which some are
    plain, become one plain layer, of the plain parts' dtype or of 16 bits."""
    weights = [part.weight for part in parts if isinstance(part.weight, Weight4)]
    kinds = {(weight.grid, weight.group, weight.zero is None) for weight in weights}
    alike = len(kinds) == 1 and all(_same(weight.smooth, weights[0].smooth) for weight in weights)
    if not weights or (len(weights) == len(parts) and alike):
        return stack(parts)
    floats = [part.weight.dtype for part in parts if isinstance(part.weight, Tensor)] or [weights[0].scale.dtype]
    dtype = floats[0] if floats[0].itemsize > 1 else torch.bfloat16
    return stack([part._replace(weight=_expanded(part.weight, dtype)) for part in parts])


def side_by_side(parts: Sequence[Linear]) -> list[Linear]:
    """Layers whose outputs are added as one layer of their inputs one after another: one layer [N, sum of K]. The sum
    of the biases is fp32.

    Raises ValueError as `stack` does.
    """
    quantised, plain = _weights(parts)
    _agree(parts, "number of outputs", [part.weight.shape[0] for part in parts])
    weight = _join_quantised(parts, quantised) if quantised else torch.cat(plain, dim=1)
    biases = [part.bias.float() for part in parts if part.bias is not None]
    return [Linear(_names(parts), weight, _sum(biases) if biases else None)]


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
    """A layer with the two halves of its outputs in the other order."""
    first, second = cut(linear, 2)
    return stack([second, first])[0]._replace(name=linear.name)


def _expanded(weight: Weight4 | Tensor, dtype: torch.dtype) -> Tensor:
    return dequantise(weight).to(dtype) if isinstance(weight, Weight4) else weight


def _names(parts: Sequence[Linear]) -> str:
    return " and ".join(part.name for part in parts)


def _weights(parts: Sequence[Linear]) -> tuple[list[Weight4], list[Tensor]]:
    """The weights of the parts, all 4-bit ones or all plain ones. Raises ValueError where they are of both kinds."""
    quantised = [part.weight for part in parts if isinstance(part.weight, Weight4)]
    plain = [part.weight for part in parts if isinstance(part.weight, Tensor)]
    _agree(parts, "kind of weight", [isinstance(part.weight, Weight4) for part in parts])
    return quantised, plain


def _agree(parts: Sequence[Linear], name: str, values: Sequence[object]) -> None:
    """Raises ValueError where the parts differ in their values, which are `name`."""
    if any(value != values[0] for value in values):
        raise ValueError(f"{_names(parts)}: expected one {name}, found {' and '.join(map(str, values))}")


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(operator.add, tensors)


def _zeros_for(part: Linear) -> Tensor:
    return torch.zeros(part.weight.shape[0])


def _stack_quantised(parts: Sequence[Linear], weights: Sequence[Weight4]) -> Weight4:
    first = weights[0]
    _agree(parts, "number of inputs", [weight.shape[1] for weight in weights])
    _agree_on_grid(parts, weights)
    _agree(parts, "start of the unsigned inputs", [weight.unsigned_from for weight in weights])
    if not all(_same(weight.smooth, first.smooth) for weight in weights):
        raise ValueError(f"{_names(parts)}: expected one smoothing of their common input, found different ones")
    channel_scale = None
    if any(weight.channel_scale is not None for weight in weights):
        channel_scale = torch.cat([_channel_scale(weight).expand(weight.shape[0]) for weight in weights])
    down = up = None
    if any(weight.low_rank is not None for weight in weights):
        downs, ups = _low_ranks(weights)
        if all(_same(weight.proj_down, first.proj_down) for weight in weights):
            down, up = first.proj_down, torch.cat(ups)
        else:
            down, up = torch.cat(downs, dim=1), torch.block_diag(*ups)
    return Weight4(
        torch.cat([weight.codes for weight in weights]),
        torch.cat([weight.scale for weight in weights], dim=1),
        first.grid,
        _cat_zeros(weights, dim=1),
        channel_scale,
        first.smooth,
        down,
        up,
        first.unsigned_from,
    )


def _join_quantised(parts: Sequence[Linear], weights: Sequence[Weight4]) -> Weight4:
    _agree_on_grid(parts, weights)
    unsigned_from = _unsigned_from(parts, weights)
    # That of the joined layer takes long to compute, and those of the parts are known.
    shifts = [weight.shift for weight in weights if weight.unsigned_from is not None]
    weights = _with_one_channel_scale(weights)
    first = weights[0]
    smooth = None
    if any(weight.smooth is not None for weight in weights):
        smooth = torch.cat([_smooth(weight) for weight in weights])
    down = up = None
    if any(weight.rank for weight in weights):
        downs, ups = _low_ranks(weights)
        down, up = torch.block_diag(*downs), torch.cat(ups, dim=1)
    return Weight4(
        torch.cat([weight.codes for weight in weights], dim=1),
        torch.cat([weight.scale for weight in weights]),
        first.grid,
        _cat_zeros(weights, dim=0),
        first.channel_scale,
        smooth,
        down,
        up,
        unsigned_from,
        _sum(shifts) if shifts else None,
    )


def _cat_zeros(weights: Sequence[Weight4], dim: int) -> Tensor | None:
    """The zero points of weights that all have some or all have none."""
    zeros = [weight.zero for weight in weights if weight.zero is not None]
    return torch.cat(zeros, dim=dim) if zeros else None


def _agree_on_grid(parts: Sequence[Linear], weights: Sequence[Weight4]) -> None:
    _agree(parts, "grid", [weight.grid for weight in weights])
    _agree(parts, "group", [weight.group for weight in weights])
    _agree(parts, "kind of zero", [weight.zero is not None for weight in weights])


def _unsigned_from(parts: Sequence[Linear], weights: Sequence[Weight4]) -> int | None:
    """Where the unsigned inputs of the parts side by side begin: they must be the last ones."""
    begin, start = None, 0
    for weight in weights:
        columns, own = weight.shape[1], weight.unsigned_from
        if begin is not None and own != 0:
            raise ValueError(f"{_names(parts)}: expected the unsigned inputs to be the last, found them in between")
        if own is not None and begin is None:
            begin = start + own
        start += columns
    return begin


def _with_one_channel_scale(weights: Sequence[Weight4]) -> Sequence[Weight4]:
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


def _low_ranks(weights: Sequence[Weight4]) -> tuple[list[Tensor], list[Tensor]]:
    """proj_down and proj_up of each weight, of rank zero where there are none."""
    # Of the others' dtype: scales may be FP8, which torch does not promote.
    like = next(pair[0] for weight in weights if (pair := weight.low_rank) is not None)
    downs, ups = [], []
    for weight in weights:
        down, up = weight.low_rank or (like.new_empty(size, 0) for size in reversed(weight.shape))
        downs.append(down)
        ups.append(up)
    return downs, ups
