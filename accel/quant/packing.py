"""Bit layouts of 4-bit linear layers, to and from the natural order of `Weight4`.

Three engines, three orders: nunchaku's (fragments of the tensor cores' m16n8k64, tiles of 128 output channels; formulas
from deepcompressor's exporter and nunchaku's own packer), tinychat's for W4A16 layers (AWQ), and comfy-kitchen's tiles.
Each is a reshape, a permutation of the axes and a reshape, so unpacking and packing are one table row read two ways.

N must be a multiple of 128 and K one of 64 (nunchaku, tiles), R one of 16; the reader of a file checks its shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class _Order(NamedTuple):
    """Packed data are seen as `tiles`; their axes in the order `axes` are the natural data. -1 is whatever is left."""

    tiles: tuple[int, ...]
    axes: tuple[int, ...]

    def unpack(self, packed: Tensor, *shape: int) -> Tensor:
        return packed.reshape(self.tiles).permute(self.axes).reshape(shape)

    def pack(self, natural: Tensor, *shape: int) -> Tensor:
        split = natural.reshape([self.tiles[axis] for axis in self.axes])
        return split.permute([self.axes.index(axis) for axis in range(len(self.axes))]).reshape(shape)


def _codes(columns: int) -> _Order:
    """A lane holds 8 codes of row n = 16 np + 8 nh + nl at columns 32 kh + 8 kl in a word; two neighbouring columns
    share a byte, low nibble first, in both orders, so whole words move. Axes: nt, kt, np, nl, kl, nh, kh."""
    return _Order((-1, columns // 64, 8, 8, 4, 2, 2), (0, 2, 5, 3, 1, 6, 4))


def _scales(groups: int) -> _Order:
    """Row n = 128 nt + 16 a + 8 b + 2 l + p. Axes: nt, group, a, l, b, p."""
    return _Order((-1, groups, 8, 4, 2, 2), (1, 0, 2, 4, 3, 5))


def _micro_scales(groups: int) -> _Order:
    """Row n = 128 nt + 32 s + 8 l4 + l8, group 4 kt + g. Axes: nt, kt, l8, l4, s, g."""
    return _Order((-1, groups // 4, 8, 4, 4, 4), (1, 5, 0, 4, 3, 2))


def _low_rank(rank: int, axes: tuple[int, ...]) -> _Order:
    """Blocks of 16 x 16 with a row number a and a column number c. Axes: block of the long side, block of the rank,
    a & 7, (c >> 1) & 3, a >> 3, c >> 3, c & 1."""
    return _Order((-1, rank // 16, 8, 4, 2, 2, 2), axes)


# a counts the rank and c input channels in proj_down; a counts output channels and c the rank in proj_up.
_DOWN, _UP = (0, 5, 3, 6, 1, 4, 2), (0, 4, 2, 1, 5, 3, 6)


def _awq(columns: int) -> _Order:
    """Codes of row n = 4 q + i at column 64 kb + 32 h + 16 j + 8 p + 2 t and the next one, which share a byte once
    `_exchange` was there. Axes: q, kb, i, h, t, p, j."""
    return _Order((-1, columns // 64, 4, 2, 4, 2, 2), (0, 2, 1, 3, 6, 5, 4))


def _exchange(data: Tensor) -> Tensor:
    """Of every four bytes, the upper nibbles of the first two and the lower ones of the last two change places. Its
    own inverse. Faster than to move single codes."""
    first, last = data.contiguous().view(torch.uint8).view(-1, 2, 2).unbind(1)
    return torch.stack((first & 15 | last << 4, first >> 4 | last & 240), dim=1)


def _tile_codes(columns: int) -> _Order:
    """Four rows of 64 codes side by side. Axes: nt, kt, four rows, row, byte."""
    return _Order((-1, columns // 64, 32, 4, 32), (0, 2, 3, 1, 4))


def unpack_codes(packed: Tensor) -> Tensor:
    """nunchaku's `qweight` int8 [N, K / 2] as `Weight4.codes`, int8 [N, K / 2]. INT4 and NVFP4 alike."""
    rows, half = packed.shape
    return _codes(2 * half).unpack(packed.contiguous().view(torch.int32), rows, half // 4).view(torch.int8)


def pack_codes(codes: Tensor) -> Tensor:
    """`unpack_codes` undone."""
    rows, half = codes.shape
    return _codes(2 * half).pack(codes.contiguous().view(torch.int32), rows, half // 4).view(torch.int8)


def unpack_scales(packed: Tensor) -> Tensor:
    """nunchaku's 16-bit `wscales` [K / 64, N] in natural order, [K / 64, N]."""
    return _scales(packed.shape[0]).unpack(packed, *packed.shape)


def pack_scales(scales: Tensor) -> Tensor:
    """`unpack_scales` undone."""
    return _scales(scales.shape[0]).pack(scales, *scales.shape)


def unpack_vector(packed: Tensor) -> Tensor:
    """nunchaku's `bias`, `wcscales` [N] or `smooth` [K] in natural order."""
    return unpack_scales(packed[None])[0]


def pack_vector(vector: Tensor) -> Tensor:
    """`unpack_vector` undone."""
    return pack_scales(vector[None])[0]


def unpack_micro_scales(packed: Tensor) -> Tensor:
    """nunchaku's NVFP4 `wscales`, float8_e4m3fn [K / 16, N], in natural order, [K / 16, N]."""
    order = _micro_scales(packed.shape[0])
    return order.unpack(packed.view(torch.uint8), *packed.shape).view(packed.dtype)


def pack_micro_scales(scales: Tensor) -> Tensor:
    """`unpack_micro_scales` undone."""
    order = _micro_scales(scales.shape[0])
    return order.pack(scales.view(torch.uint8), *scales.shape).view(scales.dtype)


def unpack_down(packed: Tensor) -> Tensor:
    """nunchaku's `lora_down` or `proj_down` [K, R] as `Weight4.proj_down` [K, R]."""
    return _low_rank(packed.shape[1], _DOWN).unpack(packed, *packed.shape)


def pack_down(proj_down: Tensor) -> Tensor:
    """`unpack_down` undone."""
    return _low_rank(proj_down.shape[1], _DOWN).pack(proj_down, *proj_down.shape)


def unpack_up(packed: Tensor) -> Tensor:
    """nunchaku's `lora_up` or `proj_up` [N, R] as `Weight4.proj_up` [N, R]."""
    return _low_rank(packed.shape[1], _UP).unpack(packed, *packed.shape)


def pack_up(proj_up: Tensor) -> Tensor:
    """`unpack_up` undone."""
    return _low_rank(proj_up.shape[1], _UP).pack(proj_up, *proj_up.shape)


def unpack_awq(packed: Tensor) -> Tensor:
    """AWQ's `qweight` int32 [N / 4, K / 2] as int8 [N, K / 2]: codes 0..15, even columns in the low nibbles."""
    quarter, half = packed.shape
    return _awq(2 * half).unpack(_exchange(packed), 4 * quarter, half).view(torch.int8)


def pack_awq(codes: Tensor) -> Tensor:
    """`unpack_awq` undone."""
    rows, half = codes.shape
    return _exchange(_awq(2 * half).pack(codes, -1)).view(rows // 4, 4 * half).view(torch.int32)


def interleave(tensor: Tensor, parts: int, dim: int) -> Tensor:
    """An axis of `parts` equal chunks in a row, rearranged so that the chunks' first elements come first, then their
    second ones: the order in which nunchaku keeps the output channels of an adaLN layer. Any dtype, any shape."""
    return tensor.unflatten(dim, (parts, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def deinterleave(tensor: Tensor, parts: int, dim: int) -> Tensor:
    """`interleave` undone."""
    return tensor.unflatten(dim, (-1, parts)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def unpack_tile_codes(packed: Tensor) -> Tensor:
    """comfy-kitchen's tile-packed `weight`, int8 [N / 128, K / 64, 32, 128], as `Weight4.codes`, int8 [N, K / 2]."""
    row_tiles, column_tiles = packed.shape[:2]
    return _tile_codes(64 * column_tiles).unpack(packed, 128 * row_tiles, 32 * column_tiles)


def pack_tile_codes(codes: Tensor) -> Tensor:
    """`unpack_tile_codes` undone."""
    rows, half = codes.shape
    return _tile_codes(2 * half).pack(codes, rows // 128, half // 32, 32, 128)


def unpack_tile_scales(packed: Tensor) -> Tensor:
    """comfy-kitchen's tile-packed scales [N / 128, K / 64, 128] in natural order, [K / 64, N]."""
    return packed.transpose(0, 1).flatten(1)


def pack_tile_scales(scales: Tensor) -> Tensor:
    """`unpack_tile_scales` undone."""
    return scales.unflatten(1, (-1, 128)).transpose(0, 1).contiguous()


def unpack_tile_up(packed: Tensor) -> Tensor:
    """comfy-kitchen's tile-packed `proj_up` [N / 128, R, 128] as `Weight4.proj_up` [N, R]."""
    return packed.transpose(1, 2).flatten(0, 1)


def pack_tile_up(proj_up: Tensor) -> Tensor:
    """`unpack_tile_up` undone."""
    return proj_up.unflatten(0, (-1, 128)).transpose(1, 2).contiguous()
