"""What a tensor of a file must be, said in one way."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

FLOATS_16 = (torch.bfloat16, torch.float16)
FLOATS = (*FLOATS_16, torch.float32)
FP8 = torch.float8_e4m3fn


def expect(name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], *shape: int | None) -> None:
    """Raises ValueError where the tensor `name` has none of the dtypes, not this shape (None: any size), or values
    that are no numbers."""
    fits = tensor.ndim == len(shape) and all(
        size is None or size == actual for size, actual in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype not in dtypes or not fits:
        kinds = " or ".join(_dtype(dtype) for dtype in dtypes)
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        actual = f"{_dtype(tensor.dtype)} {list(tensor.shape)}"
        raise ValueError(f"{name}: expected {kinds} [{sizes}], found {actual}")
    # Both ends are NaN where anything is.
    if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.float().aminmax()).isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, found NaN or infinity")


def expect_parts(layer: str, parts: Collection[str], required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raises ValueError where a layer lacks a required tensor or has one that means nothing here."""
    for part in required:
        if part not in parts:
            raise ValueError(f"{layer}: expected a tensor {layer}.{part}, found only {', '.join(sorted(parts))}")
    for part in parts:
        if part not in required and part not in optional:
            raise ValueError(f"{layer}.{part}: expected no such tensor, found one")


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
