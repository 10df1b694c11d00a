"""Keys and values in chunk layout (gather.py) at 8 bits: gathered and quantised in one pass.

Keys lose a shift first, the same for all keys of a (batch, head): a softmax does not see it, and without the mean that
they share they fit 8 bits better (SageAttention, arXiv 2410.02367). Every key has a step of its own, values have one
per channel (SageAttention2, arXiv 2411.10958).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import registry
from .gather import CHUNK, chunk_layout, gather_chunks, one_block

INT8, FP8 = torch.int8, torch.float8_e4m3fn
LARGEST = {INT8: 127.0, FP8: 448.0}  # codes lie between minus this and this
TINY = 1e-30  # what is smaller counts as nothing
SHIFT_STRIDE = 16  # any shift is exact, so the mean of some keys will do


class Formats(NamedTuple):
    """keys: INT8 or FP8, of queries and keys; values: FP8, of values and attention weights; None of either: 16 bits."""

    keys: torch.dtype | None
    values: torch.dtype | None


class QuantisedChunks(NamedTuple):
    """keys: INT8 or FP8 [B, H, NC * chunk, D], or in the dtype that they had; key_steps: fp32 [B, H, NC * chunk], what
    a code of each key is worth, or None; values: FP8 [B, H, NC, D, chunk], each chunk transposed as 8-bit matrix units
    want it, or [B, H, NC * chunk, D] in the dtype that they had."""

    keys: Tensor
    key_steps: Tensor | None
    values: Tensor


def key_shift(k: Tensor) -> Tensor:
    """About the mean key of every (batch, head) of k [B, H, N, D]: fp32 [B, H, D]. Where it is not finite it is 0: one
    NaN must not reach all keys."""
    return k[:, :, ::SHIFT_STRIDE].mean(dim=2, dtype=torch.float32).nan_to_num_(0.0, 0.0, 0.0)


def value_steps(v: Tensor) -> Tensor:
    """What a code of each channel is worth so that all of v [B, H, N, D] fits FP8: fp32 [B, H, D], NaN for a channel
    with a NaN."""
    return torch.linalg.vector_norm(v, torch.inf, dim=2).float() / LARGEST[FP8]


def quantise_chunks(
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    index: Tensor,
    chunk_start: Tensor,
    chunk_live: Tensor,
    chunk: int = CHUNK,
    *,
    shift: Tensor,
    steps: Tensor | None,
    formats: Formats,
    backend: str,
) -> QuantisedChunks:
    """Rows of k - shift and v in chunk layout, in `formats`.

    k, v: [B, H, N, D], any strides with D dense; tokens to chunk: see gather.gather_chunks;
    shift: fp32 [B, H, D]; steps: fp32 [B, H, D], of the values, or None where they keep their dtype.

    Rows beyond a chunk's live ones are zero, and so are their steps.
    """
    run = {"triton": _quantise_op, "reference": _quantise_reference}[backend]
    keys, key_steps, values = run(k, v, tokens, index, chunk_start, chunk_live, chunk, shift, steps, *formats)
    return QuantisedChunks(keys, None if formats.keys is None else key_steps, values)


def row_codes(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of x [..., D], the largest of each row at the end of the range, and the rows' steps fp32 [...], NaN for a
    row with a NaN or an infinity."""
    largest = x.float().abs().amax(-1)
    scaled = x.float() * (LARGEST[dtype] / largest.clamp(min=TINY))[..., None]
    if dtype == INT8:
        scaled = (scaled + 0.5).floor_()
    return scaled.to(dtype), (largest / LARGEST[dtype]).masked_fill_(largest.isinf(), torch.nan)


def channel_codes(v: Tensor, steps: Tensor) -> Tensor:
    """FP8 codes of v [B, H, N, D] by the steps [B, H, D] of its channels; what is out of range becomes the largest."""
    scaled = v.float() / steps.clamp(min=TINY)[:, :, None]
    return scaled.clamp_(-LARGEST[FP8], LARGEST[FP8]).to(FP8)


def empty_chunks(
    k: Tensor, chunks: int, chunk: int, key_format: torch.dtype | None, value_format: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the QuantisedChunks of tensors like k [B, H, N, D]: `chunks` of `chunk` rows; no steps for 16-bit
    keys."""
    batch, heads, _, dim = k.shape
    rows = (batch, heads, chunks * chunk)
    steps = k.new_empty(rows if key_format else (0,), dtype=torch.float32)
    if value_format is None:
        values = k.new_empty(*rows, dim)
    else:
        values = k.new_empty(batch, heads, chunks, dim, chunk, dtype=value_format)
    return k.new_empty(*rows, dim, dtype=key_format), steps, values


def _largest(dtype: torch.dtype | None) -> float:
    """The largest code of a format, 0 for 16 bits."""
    return 0.0 if dtype is None else LARGEST[dtype]


def _quantise_reference(k, v, tokens, index, chunk_start, chunk_live, chunk, shift, steps, key_format, value_format):
    layout = tokens, index, chunk_start, chunk_live, chunk
    live = torch.arange(chunk, device=k.device) < chunk_live[index][..., None]
    centred = gather_chunks(k, *layout, backend="reference").float() - shift[:, :, None]
    centred.masked_fill_(~live.flatten(2)[..., None], 0)
    keys, key_steps = row_codes(centred, key_format) if key_format else (centred.to(k.dtype), shift.new_empty(0))
    values = gather_chunks(v, *layout, backend="reference")
    if value_format is not None:
        values = channel_codes(values, steps).unflatten(2, (-1, chunk)).transpose(3, 4).contiguous()
    return keys, key_steps, values


def _quantise_fake(
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    index: Tensor,
    chunk_start: Tensor,
    chunk_live: Tensor,
    chunk: int,
    shift: Tensor,
    steps: Tensor | None,
    key_format: torch.dtype | None,
    value_format: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_chunks(k, chunk_start.shape[1], chunk, key_format, value_format)


def _quantise_triton(
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    index: Tensor,
    chunk_start: Tensor,
    chunk_live: Tensor,
    chunk: int,
    shift: Tensor,
    steps: Tensor | None,
    key_format: torch.dtype | None,
    value_format: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from .triton.quantise import launch

    chunks = empty_chunks(k, chunk_start.shape[1], chunk, key_format, value_format)
    largest = _largest(key_format), _largest(value_format)
    launch(k, v, tokens, index, chunk_start, chunk_live, chunk, shift, steps, chunks, largest)
    return chunks


_quantise_op = registry.custom_op("quantise_chunks", _quantise_triton, _quantise_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """The smallest call (registry.trial_problem)."""
    tokens, offsets, index = one_block(device)
    _, start, live = chunk_layout(offsets, 64)
    x = torch.zeros(1, 1, 64, head_dim, dtype=dtype, device=device)
    formats = Formats(INT8, None)
    quantise_chunks(x, x, tokens, index, start, live, shift=key_shift(x), steps=None, formats=formats, backend="triton")
