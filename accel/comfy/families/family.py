"""A row of the families' table, and what its functions are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...attention.layout import TokenLayout


@dataclass(frozen=True)
class ForwardInputs:
    """What APPLY_MODEL hands a model: x is the latent [B, C, T, H, W], context the text embedding
    [B, tokens, width], extra every further condition by name."""

    x: Any
    context: Any
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A row of the table.

    layout: the tokens of one forward, or the reason (a constant of `reasons`) why it must stay dense.
    calls: video self-attention calls that one forward makes.
    block: a block's number counted through all block types, from transformer_options.
    """

    name: str
    layout: Callable[[Any, ForwardInputs], TokenLayout | str]
    calls: Callable[[Any, ForwardInputs], int]
    block: Callable[[Any, Mapping[str, Any]], int | None]


def whole_patches(sizes: Iterable[int], patch: Iterable[int]) -> tuple[int, ...]:
    """Patches that cover every size, the last one padded."""
    return tuple(-(-size // edge) for size, edge in zip(sizes, patch, strict=True))


def block_index(model, options: Mapping[str, Any]) -> int | None:
    """The number that a model of one sequence of blocks gives in transformer_options."""
    return options.get("block_index")
