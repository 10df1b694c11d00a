"""Tile shapes of the attention kernel for every chip, chosen by what compiles without spills in its loops within shared
memory, and the 8-bit formats that a chip has."""

from typing import NamedTuple

import torch

from . import registry
from .quantise import FP8, INT8, Formats


class Config(NamedTuple):
    """Queries and keys of one tile, warps of a program, pipeline stages of the key loop."""

    queries: int
    keys: int
    warps: int
    stages: int


_16_BIT = {
    128: {
        "sm_80": Config(128, 32, 8, 3),
        "sm_86": Config(128, 32, 8, 3),
        "sm_89": Config(128, 32, 8, 3),
        "sm_90": Config(128, 64, 8, 3),
        "sm_100": Config(128, 128, 8, 2),
        "sm_120": Config(128, 32, 8, 3),
        "gfx942": Config(128, 64, 4, 1),
        "gfx1100": Config(64, 16, 8, 1),
        "gfx1201": Config(64, 32, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
    64: {
        "sm_80": Config(128, 64, 8, 3),
        "sm_86": Config(128, 64, 8, 2),
        "sm_89": Config(128, 64, 8, 2),
        "sm_90": Config(128, 128, 8, 2),
        "sm_100": Config(128, 128, 8, 2),
        "sm_120": Config(128, 64, 8, 2),
        "gfx942": Config(128, 64, 4, 1),
        "gfx1100": Config(128, 32, 8, 1),
        "gfx1201": Config(64, 64, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
}
# Keys at 8 bits, values at 16.
_8_16_BIT = {
    128: {
        "sm_80": Config(128, 64, 8, 2),
        "sm_86": Config(128, 64, 8, 3),
        "sm_90": Config(128, 64, 8, 3),
        "sm_120": Config(128, 32, 8, 3),
        "gfx942": Config(128, 64, 4, 1),
        "gfx1100": Config(64, 16, 8, 1),
        "gfx1201": Config(64, 32, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
    64: {
        "sm_80": Config(128, 64, 8, 3),
        "gfx942": Config(128, 64, 4, 1),
        "gfx1100": Config(128, 32, 8, 1),
        "gfx1201": Config(64, 64, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
}
_8_BIT = {
    128: {
        "sm_89": Config(128, 32, 8, 2),
        "sm_90": Config(128, 64, 8, 3),
        "sm_120": Config(128, 32, 8, 3),
        "interpreter": Config(32, 32, 4, 1),
    },
    64: {
        "sm_89": Config(128, 64, 8, 3),
        "interpreter": Config(32, 32, 4, 1),
    },
}


# Keys at 16 bits, values at 8.
_16_8_BIT = {
    128: {"sm_100": Config(128, 64, 8, 3), "interpreter": Config(32, 32, 4, 1)},
    64: {"sm_100": Config(128, 128, 8, 2), "interpreter": Config(32, 32, 4, 1)},
}
_BY_FORMAT = {  # whether keys, and whether values, have 8 bits
    (False, False): _16_BIT,
    (True, False): _8_16_BIT,
    (True, True): _8_BIT,
    (False, True): _16_8_BIT,
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


def choose_config(chip: str, dim: int, keys: torch.dtype, values: torch.dtype) -> Config:
    """For a head dimension, and keys and values as the kernel gets them."""
    eight = keys in (INT8, FP8), values == FP8
    return registry.nearest(_BY_FORMAT[eight][dim], chip)
