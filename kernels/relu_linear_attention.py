"""Attention without softmax: weights relu(q) . relu(k), so that keys and values enter through one small matrix a head.

Method: EfficientViT's multi-scale linear attention, arXiv 2205.14756, as DC-AE uses it, arXiv 2410.10733. With x the
relu of q, y the relu of k and S the sum of [v; 1] yᵀ over all tokens, a token's result is S[:D] x / (S[D] x + EPSILON).
S is a sum over tokens: an image can be summed strip by strip, and then each strip gets its result alone.

Both operations work in fp32 whatever the input. Precision of the kernels, beside the error of the reference: products
of 16-bit keys and values are exact; fp32 numbers are multiplied as three bf16 parts each, six products, which drops
at most 2^-24 of a product (numbers below 1e-30 keep fewer bits, those above 3.38e38 overflow). A Triton before 3.6
cannot: there NVIDIA's cards multiply two TF32 parts each, three products, which drops at most 2^-20 of a product, and
AMD's multiply plain fp32 without matrix units. Matrix units
cut off instead of rounding where they add, so a chain of their sums may lose 2^-23 of what it holds in each step of 16
tokens: no chain is longer than one of PART tokens, and the rest is added in plain fp32.

Bytes a token and head, in units of the head dimension: the kernels move 8 at 16 bits and 16 at fp32. The same in plain
PyTorch (to fp32, relu, a row of ones, two products, division, and back) moves 72 and 48. So the kernels should be
faster on every GPU, by up to 9 and 3 times where memory sets the time (ROOFLINE.md); a prediction, nothing was timed.
"""

import torch
from torch import Tensor

from . import registry

EPSILON = 1e-15  # the published checkpoints' own
PART = 1024  # tokens that one program of the kernels sums


def kv_sums(qkv: Tensor, *, head_dim: int, backend: str) -> Tensor:
    """Sum of [v; 1] relu(k)ᵀ over tokens, for every head; the kernel adds in a fixed order, so its results repeat.

    qkv: [B, heads * 3 * head_dim, h, W], fp16, bf16 or fp32, any strides, fewer than 2^31 tokens h * W; each
    consecutive 3 * head_dim channels are a head's q, k and v. Tokens are read fast where rows follow each other
    without a gap, as in channels-first and channels-last tensors and in strips of their rows.
    head_dim: for the kernel 32, as published, or 16.

    Returns fp32 [B, heads, head_dim + 1, head_dim]: values in rows, keys in columns, the keys' own sum in the last row.
    """
    return {"triton": _sums_op, "reference": _sums_reference}[backend](qkv, head_dim)


def apply_sums(qkv: Tensor, sums: Tensor, *, head_dim: int, backend: str) -> Tensor:
    """Every token's result: (sums[:D] relu(q)) / (sums[D] relu(q) + EPSILON) in fp32, rounded once to qkv's dtype.

    qkv, head_dim: as kv_sums takes them; the tokens need not be the ones that were summed. sums: what kv_sums returned,
    or the sum of several such.

    Returns [B, heads * head_dim, h, W], laid out channels-last if the channels of qkv lie side by side, else
    contiguous.
    """
    return {"triton": _apply_op, "reference": _apply_reference}[backend](qkv, sums, head_dim)


def split_heads(qkv: Tensor, head_dim: int) -> tuple[Tensor, ...]:
    """q, k and v, each [B, heads, head_dim, h * W]."""
    return tuple(x.flatten(3) for x in qkv.unflatten(1, (-1, 3, head_dim)).unbind(2))


def empty_result(qkv: Tensor) -> Tensor:
    """Memory for what apply_sums returns."""
    batch, channels, height, width = qkv.shape
    layout = torch.channels_last if qkv.stride(1) == 1 else torch.contiguous_format
    shape = batch, channels // 3, height, width
    return torch.empty(shape, dtype=qkv.dtype, device=qkv.device, memory_format=layout)


def _sums_reference(qkv: Tensor, head_dim: int) -> Tensor:
    _, k, v = split_heads(qkv, head_dim)
    k = k.relu().float()
    return torch.cat([v.float() @ k.mT, k.sum(-1)[:, :, None]], dim=2)


def _apply_reference(qkv: Tensor, sums: Tensor, head_dim: int) -> Tensor:
    q = split_heads(qkv, head_dim)[0].relu().float()
    out = (sums[:, :, :-1] @ q).div_(sums[:, :, -1:] @ q + EPSILON)
    return empty_result(qkv).copy_(out.unflatten(3, qkv.shape[2:]).flatten(1, 2))


def _sums_fake(qkv: Tensor, head_dim: int) -> Tensor:
    heads = qkv.shape[1] // (3 * head_dim)
    return qkv.new_empty(qkv.shape[0], heads, head_dim + 1, head_dim, dtype=torch.float32)


def _sums_triton(qkv: Tensor, head_dim: int) -> Tensor:
    from .triton.relu_linear_attention import launch_sums

    return launch_sums(qkv, head_dim, part=PART)


_sums_op = registry.custom_op("kv_sums", _sums_triton, _sums_fake)


def _apply_fake(qkv: Tensor, sums: Tensor, head_dim: int) -> Tensor:
    return empty_result(qkv)


def _apply_triton(qkv: Tensor, sums: Tensor, head_dim: int) -> Tensor:
    from .triton.relu_linear_attention import launch_apply

    out = empty_result(qkv)
    launch_apply(qkv, sums, out, head_dim, part=PART, epsilon=EPSILON)
    return out


_apply_op = registry.custom_op("apply_sums", _apply_triton, _apply_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """The smallest call (registry.trial_problem)."""
    qkv = torch.zeros(1, 3 * head_dim, 8, 8, dtype=dtype, device=device)
    apply_sums(qkv, kv_sums(qkv, head_dim=head_dim, backend="triton"), head_dim=head_dim, backend="triton")
