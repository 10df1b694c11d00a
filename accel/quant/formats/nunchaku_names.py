"""Names and shapes of the models that nunchaku has files of, and what ComfyUI calls the same layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..joining import Linear, cut, side_by_side, stack, swap_halves


@dataclass(frozen=True)
class Source:
    """A linear layer of the file. outputs, inputs: its N and K in widths of the model; None: as the file has them.
    unsigned: its input comes from a GELU. chunks: the vectors that an adaLN layer's outputs are."""

    name: str
    outputs: int | None = None
    inputs: int | None = None
    unsigned: bool = False
    chunks: int = 1


@dataclass(frozen=True)
class Move:
    """Layers of the file that become layers of ComfyUI's model, by `convert`."""

    sources: tuple[Source, ...]
    targets: tuple[str, ...]
    convert: Callable[[Sequence[Linear]], Sequence[Linear]] = list


@dataclass(frozen=True)
class Blocks:
    """A list of blocks: its name in ComfyUI's model, what moves in each block, and other names of its layers in
    files. What is not in `moves` keeps its name."""

    name: str
    moves: tuple[Move, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """classes: what a file's metadata call the model. mark: a tensor that tells its files from those of other models.
    width: the tensor whose rows are as many as the model is wide. markers: an empty tensor that ComfyUI expects, by
    the setting in the file's configuration that stands for it."""

    name: str
    classes: tuple[str, ...]
    mark: str
    width: str
    blocks: Mapping[str, Blocks]
    outside: tuple[Move, ...] = ()
    markers: Mapping[str, str] = field(default_factory=dict)


def move(name: str, target: str, outputs: int | None, inputs: int | None, **about) -> Move:
    """One layer that stays one; `about`: the other fields of Source."""
    return Move((Source(name, outputs, inputs, **about),), (target,))


def _cut(name: str, outputs: int | None, inputs: int, *targets: str) -> Move:
    return Move((Source(name, outputs, inputs),), targets, lambda linears: cut(linears[0], len(targets)))


def rename(names: Mapping[str, str]) -> tuple[Move, ...]:
    """Layers of any size that stay as they are."""
    return tuple(Move((Source(name),), (target,)) for name, target in names.items())


_FLUX_DOUBLE = Blocks(
    "double_blocks",
    (
        move("qkv_proj", "img_attn.qkv", 3, 1),
        move("qkv_proj_context", "txt_attn.qkv", 3, 1),
        move("out_proj", "img_attn.proj", 1, 1),
        move("out_proj_context", "txt_attn.proj", 1, 1),
        move("mlp_fc1", "img_mlp.0", 4, 1),
        move("mlp_fc2", "img_mlp.2", 1, 4, unsigned=True),
        move("mlp_context_fc1", "txt_mlp.0", 4, 1),
        move("mlp_context_fc2", "txt_mlp.2", 1, 4, unsigned=True),
        move("norm1.linear", "img_mod.lin", 6, 1, chunks=6),
        move("norm1_context.linear", "txt_mod.lin", 6, 1, chunks=6),
        *rename(
            {
                "norm_q": "img_attn.norm.query_norm",
                "norm_k": "img_attn.norm.key_norm",
                "norm_added_q": "txt_attn.norm.query_norm",
                "norm_added_k": "txt_attn.norm.key_norm",
            }
        ),
    ),
    {
        "attn.to_qkv": "qkv_proj",
        "attn.add_qkv_proj": "qkv_proj_context",
        "attn.to_out.0": "out_proj",
        "attn.to_add_out": "out_proj_context",
        "ff.net.0.proj": "mlp_fc1",
        "ff.net.2": "mlp_fc2",
        "ff_context.net.0.proj": "mlp_context_fc1",
        "ff_context.net.2": "mlp_context_fc2",
        "attn.norm_q": "norm_q",
        "attn.norm_k": "norm_k",
        "attn.norm_added_q": "norm_added_q",
        "attn.norm_added_k": "norm_added_k",
    },
)
_FLUX_SINGLE = Blocks(
    "single_blocks",
    (
        Move((Source("qkv_proj", 3, 1), Source("mlp_fc1", 4, 1)), ("linear1",), stack),
        Move((Source("out_proj", 1, 1), Source("mlp_fc2", 1, 4, unsigned=True)), ("linear2",), side_by_side),
        move("norm.linear", "modulation.lin", 3, 1, chunks=3),
        *rename({"norm_q": "norm.query_norm", "norm_k": "norm.key_norm"}),
    ),
    {"attn.to_qkv": "qkv_proj", "attn.to_out": "out_proj", "attn.norm_q": "norm_q", "attn.norm_k": "norm_k"},
)
FLUX = Model(
    "FLUX.1",
    (
        "NunchakuFluxTransformer2dModel",
        "NunchakuFluxTransformer2DModel",
        "NunchakuFluxTransformer2DModelV2",
        "FluxTransformer2DModel",
        "Flux",
        "FluxSchnell",
    ),
    mark="time_text_embed.text_embedder.linear_1.weight",
    width="x_embedder.weight",
    blocks={"transformer_blocks": _FLUX_DOUBLE, "single_transformer_blocks": _FLUX_SINGLE},
    outside=(
        *rename(
            {
                "x_embedder": "img_in",
                "context_embedder": "txt_in",
                "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
                "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
                "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
                "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
                "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
                "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
                "proj_out": "final_layer.linear",
            }
        ),
        # diffusers computes scale and shift in this order, ComfyUI in the other.
        Move(
            (Source("norm_out.linear"),),
            ("final_layer.adaLN_modulation.1",),
            lambda linears: [swap_halves(linears[0])],
        ),
    ),
)

QWEN_IMAGE = Model(
    "Qwen-Image",
    ("NunchakuQwenImageTransformer2DModel", "QwenImageTransformer2DModel"),
    mark="txt_norm.weight",
    width="img_in.weight",
    blocks={
        "transformer_blocks": Blocks(
            "transformer_blocks",
            (
                _cut("attn.to_qkv", 3, 1, "attn.to_q", "attn.to_k", "attn.to_v"),
                _cut("attn.add_qkv_proj", 3, 1, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                move("attn.to_out.0", "attn.to_out.0", 1, 1),
                move("attn.to_add_out", "attn.to_add_out", 1, 1),
                move("img_mlp.net.0.proj", "img_mlp.net.0.proj", 4, 1),
                move("img_mlp.net.2", "img_mlp.net.2", 1, 4, unsigned=True),
                move("txt_mlp.net.0.proj", "txt_mlp.net.0.proj", 4, 1),
                move("txt_mlp.net.2", "txt_mlp.net.2", 1, 4, unsigned=True),
                move("img_mod.1", "img_mod.1", 6, 1, chunks=6),
                move("txt_mod.1", "txt_mod.1", 6, 1, chunks=6),
            ),
        )
    },
    # The edit model of November 2025 modulates its reference images as for timestep zero.
    markers={"zero_cond_t": "__index_timestep_zero__"},
)

_Z_IMAGE_MOVES = (
    move("attention.to_qkv", "attention.qkv", 3, 1),
    # Refiners may be left as they were, with a layer each.
    Move(
        (Source("attention.to_q"), Source("attention.to_k"), Source("attention.to_v")),
        ("attention.qkv",),
        stack,
    ),
    move("attention.to_out.0", "attention.out", 1, 1),
    # silu(w1 x) * w3 x: the gate w1 comes last in the file.
    _cut("feed_forward.net.0.proj", None, 1, "feed_forward.w3", "feed_forward.w1"),
    move("feed_forward.net.2", "feed_forward.w2", 1, None),
    *rename({"attention.norm_q": "attention.q_norm", "attention.norm_k": "attention.k_norm"}),
)
Z_IMAGE = Model(
    "Z-Image",
    ("NunchakuZImageTransformer2DModel", "ZImageTransformer2DModel"),
    mark="cap_embedder.1.weight",
    width="cap_embedder.1.weight",
    blocks={name: Blocks(name, _Z_IMAGE_MOVES) for name in ("layers", "noise_refiner", "context_refiner")},
    outside=rename(
        {
            "all_x_embedder.2-1": "x_embedder",
            "all_final_layer.2-1.linear": "final_layer.linear",
            "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
        }
    ),
)

MODELS = (FLUX, QWEN_IMAGE, Z_IMAGE)
