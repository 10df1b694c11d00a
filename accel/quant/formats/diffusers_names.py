"""The same models under diffusers' own names, q, k and v apart: what nunchaku_lite (a quantiser of diffusers) writes,
and converters that start from diffusers' files. No layer knows of its neighbours there: no GELU is shifted, no adaLN
interleaved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..joining import stack_expanded
from .nunchaku_names import FLUX, QWEN_IMAGE, Z_IMAGE, Blocks, Move, Source, move, rename


def _stacked(names: Iterable[str], target: str, outputs: Iterable[int]) -> Move:
    """Layers of one input, in widths of the model, as one."""
    sources = tuple(Source(name, size, 1) for name, size in zip(names, outputs, strict=True))
    return Move(sources, (target,), stack_expanded)


_FLUX_DOUBLE = Blocks(
    "double_blocks",
    (
        _stacked(("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv", (1, 1, 1)),
        _stacked(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv", (1, 1, 1)),
        move("attn.to_out.0", "img_attn.proj", 1, 1),
        move("attn.to_add_out", "txt_attn.proj", 1, 1),
        move("ff.net.0.proj", "img_mlp.0", 4, 1),
        move("ff.net.2", "img_mlp.2", 1, 4),
        move("ff_context.net.0.proj", "txt_mlp.0", 4, 1),
        move("ff_context.net.2", "txt_mlp.2", 1, 4),
        move("norm1.linear", "img_mod.lin", 6, 1),
        move("norm1_context.linear", "txt_mod.lin", 6, 1),
        *rename(
            {
                "attn.norm_q": "img_attn.norm.query_norm",
                "attn.norm_k": "img_attn.norm.key_norm",
                "attn.norm_added_q": "txt_attn.norm.query_norm",
                "attn.norm_added_k": "txt_attn.norm.key_norm",
            }
        ),
    ),
)
_FLUX_SINGLE = Blocks(
    "single_blocks",
    (
        _stacked(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1", (1, 1, 1, 4)),
        move("proj_out", "linear2", 1, 5),
        move("norm.linear", "modulation.lin", 3, 1),
        *rename({"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}),
    ),
)
# ComfyUI calls these layers as diffusers does.
_QWEN_LAYERS = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")),
    *(f"attn.{name}" for name in ("to_out.0", "to_add_out")),
    *(f"{stream}_{name}" for stream in ("img", "txt") for name in ("mlp.net.0.proj", "mlp.net.2", "mod.1")),
)
_Z_IMAGE_MOVES = (
    _stacked(("attention.to_q", "attention.to_k", "attention.to_v"), "attention.qkv", (1, 1, 1)),
    move("attention.to_out.0", "attention.out", 1, 1),
    *rename({f"feed_forward.w{number}": f"feed_forward.w{number}" for number in (1, 2, 3)}),
    *rename({"attention.norm_q": "attention.q_norm", "attention.norm_k": "attention.k_norm"}),
)

# By the model's name: its lists of blocks.
SPLIT: Mapping[str, Mapping[str, Blocks]] = {
    FLUX.name: {"transformer_blocks": _FLUX_DOUBLE, "single_transformer_blocks": _FLUX_SINGLE},
    QWEN_IMAGE.name: {
        "transformer_blocks": Blocks("transformer_blocks", rename({name: name for name in _QWEN_LAYERS}))
    },
    Z_IMAGE.name: {name: Blocks(name, _Z_IMAGE_MOVES) for name in Z_IMAGE.blocks},
}
# A layer that only files with these names hold in 4 bits.
MARKS = (".attn.to_q", ".attention.to_q")
