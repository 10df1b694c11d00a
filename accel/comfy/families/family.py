"""A row of the families' table, and what its functions are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...attention import reasons
from ...attention.layout import TokenLayout


@dataclass(frozen=True)
class ForwardInputs:
    """What APPLY_MODEL hands a model: x is the latent [B, C, T, H, W], or a flat pack of several (extra's
    latent_shapes then has theirs); context the text embedding [B, tokens, width]; extra every further condition by
    name."""

    x: Any
    context: Any
    extra: Mapping[str, Any]


def block_index(model, options: Mapping[str, Any]) -> int | None:
    """The number that a model of one sequence of blocks gives in transformer_options."""
    return options.get("block_index")


@dataclass(frozen=True)
class Family:
    """A row of the table.

    layout: the tokens of one forward, or the reason (a constant of `reasons`) why it must stay dense.
    calls: video self-attention calls that one forward makes.
    block: a block's number counted through all block types, from transformer_options; None where the model gives
        none, and the calls are counted instead.
    unnumbered: the model gives no numbers, but lets nodes replace its blocks (patches_replace); ours then gives them.
    note: what else a user should know, in a few words, for the README's table.
    """

    name: str
    layout: Callable[[Any, ForwardInputs], TokenLayout | str]
    calls: Callable[[Any, ForwardInputs], int]
    block: Callable[[Any, Mapping[str, Any]], int | None] = block_index
    note: str = ""
    unnumbered: bool = False

    @classmethod
    def never(cls, name: str, reason: str) -> Family:
        """The row of a model that always runs dense."""
        return cls(name, lambda model, inputs: reason, lambda model, inputs: 0, note=f"runs dense: {reason}")


def whole_patches(sizes: Iterable[int], patch: Iterable[int]) -> tuple[int, ...]:
    """Patches that cover every size, the last one padded."""
    return tuple(-(-size // edge) for size, edge in zip(sizes, patch, strict=True))


def unlike_other_keys(layout: TokenLayout, inputs: ForwardInputs, *others: int) -> TokenLayout | str:
    """The layout of a model with cross-attention, which is told from self-attention by its number of keys alone: the
    text's, and `others`."""
    return reasons.AMBIGUOUS if layout.total in (inputs.context.shape[1], *others) else layout
