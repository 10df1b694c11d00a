"""Tile shapes of the attention kernel for every chip, chosen by what compiles without spills in its loops within shared
memory, and the 8-bit formats that a chip has."""

from typing import NamedTuple

import torch

from . import registry
from .gather import TALL
from .quantise import FP8, INT8, Formats

QUERY_TILE = 128  # what a tile holds of queries wherever registers allow it; plans and the cost model count with it


class Config(NamedTuple):
    """Queries and keys of one tile, warps of a program, pipeline stages of the key loop, and whether the keys of a tile
    are one tall chunk (gather.py) that is read through tensor descriptors; else they are gathered through pointers."""

    queries: int
    keys: int
    warps: int
    stages: int
    descriptors: bool = False


_16_BIT = {
    128: {
        "sm_80": Config(QUERY_TILE, 32, 8, 3),
        "sm_86": Config(QUERY_TILE, 32, 8, 3),
        "sm_89": Config(QUERY_TILE, 32, 8, 3),
        "sm_90": Config(QUERY_TILE, 64, 8, 3),
        "sm_100": Config(QUERY_TILE, 128, 8, 2),
        "sm_120": Config(QUERY_TILE, 32, 8, 3),
        "gfx942": Config(QUERY_TILE, 64, 4, 1),
        "gfx1100": Config(64, 16, 8, 1),
        "gfx1201": Config(64, 32, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
    64: {
        "sm_80": Config(QUERY_TILE, 64, 8, 3),
        "sm_86": Config(QUERY_TILE, 64, 8, 2),
        "sm_89": Config(QUERY_TILE, 64, 8, 2),
        "sm_90": Config(QUERY_TILE, 128, 8, 2),
        "sm_100": Config(QUERY_TILE, 128, 8, 2),
        "sm_120": Config(QUERY_TILE, 64, 8, 2),
        "gfx942": Config(QUERY_TILE, 64, 4, 1),
        "gfx1100": Config(QUERY_TILE, 32, 8, 1),
        "gfx1201": Config(64, 64, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
}
# Keys at 8 bits, values at 16.
_8_16_BIT = {
    128: {
        "sm_80": Config(QUERY_TILE, 32, 8, 3),
        "sm_90": Config(QUERY_TILE, 64, 8, 3),
        "sm_120": Config(QUERY_TILE, 32, 8, 3),
        "gfx942": Config(QUERY_TILE, 64, 4, 1),
        "gfx1100": Config(64, 16, 8, 1),
        "gfx1201": Config(64, 32, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
    64: {
        "sm_80": Config(QUERY_TILE, 64, 8, 3),
        "gfx942": Config(QUERY_TILE, 64, 4, 1),
        "gfx1100": Config(QUERY_TILE, 32, 8, 1),
        "gfx1201": Config(64, 64, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
}
_8_BIT = {
    128: {
        "sm_89": Config(QUERY_TILE, 32, 8, 2),
        "sm_90": Config(QUERY_TILE, 64, 8, 3),
        "sm_120": Config(QUERY_TILE, 32, 8, 3),
        "interpreter": Config(32, 32, 4, 1),
    },
    64: {
        "sm_89": Config(QUERY_TILE, 64, 8, 3),
        "interpreter": Config(32, 32, 4, 1),
    },
}


# Keys at 16 bits, values at 8.
_16_8_BIT = {
    128: {"sm_100": Config(QUERY_TILE, 64, 8, 3), "interpreter": Config(32, 32, 4, 1)},
    64: {"sm_100": Config(QUERY_TILE, 128, 8, 2), "interpreter": Config(32, 32, 4, 1)},
}
_BY_FORMAT = {  # whether keys, and whether values, have 8 bits
    (False, False): _16_BIT,
    (True, False): _8_16_BIT,
    (True, True): _8_BIT,
    (False, True): _16_8_BIT,
}

# For tall chunks, at every head dimension and format; None: the chip has no copies by descriptor. Found in the code
# that triton 3.6.0 compiles, nothing was timed: machine instructions for 64 keys at head dimension 128 are, at 16 bits
# and with 8-bit values, 436 and 559 on sm_90 (through pointers 436 and 592), 731 and 710 on sm_120 (790 and 780), 511
# and 508 on sm_100 (394 and 506). Beside every copy on sm_120 stands a call, for shared memory of another program of a
# cluster: it is never taken here, but has 8 bytes of stack. 128 queries of head dimension 128 spill with 4 warps.
#
# tl.range(warp_specialize=True) is not used: on sm_90 it changes nothing with 8 warps and fails in
# NVGPUWarpSpecialization with 4; on sm_100 it splits loads, products and softmax among up to 20 warps, but fails in
# TritonGPUHoistTMEMAlloc where the tail's loop follows.
_TALL = {
    "sm_80": None,
    "sm_90": Config(QUERY_TILE, TALL, 8, 3, True),
    "sm_100": Config(QUERY_TILE, TALL, 8, 3, True),
    "sm_120": Config(QUERY_TILE, TALL, 8, 2, True),
    "gfx1100": None,
    "interpreter": Config(32, TALL, 4, 1, True),
}

# What each chip has 8-bit matrix units for: FP8 from sm_89 on, INT8 not on sm_100. The first is the fastest of those
# that lose little; FP8 keys lose too much for that, and come last.
_INT8_ONLY = (Formats(INT8, None),)
_INT8_AND_FP8 = (Formats(INT8, FP8), Formats(INT8, None))
FORMATS = {
    "sm_80": _INT8_ONLY,
    "sm_89": _INT8_AND_FP8,
    "sm_90": _INT8_AND_FP8,
    "sm_100": (Formats(None, FP8), Formats(FP8, FP8)),
    "sm_120": _INT8_AND_FP8,
    "gfx942": _INT8_ONLY,
    "gfx1100": _INT8_ONLY,
    "gfx1201": _INT8_ONLY,
    "interpreter": _INT8_ONLY,
}


def choose_config(chip: str, dim: int, keys: torch.dtype, values: torch.dtype, chunk: int) -> Config:
    """For a head dimension, keys and values as the kernel gets them, and the rows of their chunks (gather.py): CHUNK,
    or TALL if the chip reads those."""
    if chunk == TALL:
        return registry.nearest(_TALL, chip)
    eight = keys in (INT8, FP8), values == FP8
    return registry.nearest(_BY_FORMAT[eight][dim], chip)


def reads_tall_chunks(chip: str) -> bool:
    """Whether the attention kernel reads chunks of TALL rows, through tensor descriptors (from Triton 3.4 on)."""
    return registry.triton_version() >= (3, 4) and registry.nearest(_TALL, chip) is not None
