"""The names of an autoencoder's tensors: ours, those of MIT's code and those of diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .config import STRIDED, UNSHUFFLE, Config
from .shapes import Shape, expected_shapes

# Parts of a block: ours, MIT's, diffusers'. diffusers stores the rows of one matrix as three. They are no queries, keys
# and values: those alternate within each head (q, k, v of head 0, then of head 1), so the three only mean something
# once joined. `#` stands for a number.
_PARTS = (
    ("conv1", "main.conv1.conv", "conv1"),
    ("conv2", "main.conv2.conv", "conv2"),
    ("norm", "main.conv2.norm", "norm"),
    ("attention.qkv", "context_module.main.qkv.conv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ("attention.scales.#.depthwise", "context_module.main.aggreg.#.0", "attn.to_qkv_multiscale.#.proj_in"),
    ("attention.scales.#.grouped", "context_module.main.aggreg.#.1", "attn.to_qkv_multiscale.#.proj_out"),
    ("attention.proj", "context_module.main.proj.conv", "attn.to_out"),
    ("attention.norm", "context_module.main.proj.norm", "attn.norm_out"),
    ("feed_forward.expand", "local_module.main.inverted_conv.conv", "conv_out.conv_inverted"),
    ("feed_forward.depthwise", "local_module.main.depth_conv.conv", "conv_out.conv_depth"),
    ("feed_forward.project", "local_module.main.point_conv.conv", "conv_out.conv_point"),
    ("feed_forward.norm", "local_module.main.point_conv.norm", "conv_out.norm"),
)
# The ends of both sides: ours, then MIT's and diffusers' with the other form each has (see _other_form).
_ENDS = (
    (
        "encoder.conv_in",
        ("encoder.project_in.conv", "encoder.project_in.conv.conv"),
        ("encoder.conv_in", "encoder.conv_in.conv"),
    ),
    (
        "encoder.conv_out",
        ("encoder.project_out.main.op_list.0.conv", "encoder.project_out.op_list.0.conv"),
        ("encoder.conv_out",),
    ),
    ("decoder.conv_in", ("decoder.project_in.main.conv", "decoder.project_in.conv"), ("decoder.conv_in",)),
    ("decoder.norm_out", ("decoder.project_out.op_list.0",), ("decoder.norm_out",)),
    (
        "decoder.conv_out",
        ("decoder.project_out.op_list.2.conv", "decoder.project_out.op_list.2.conv.conv"),
        ("decoder.conv_out", "decoder.conv_out.conv"),
    ),
)


# Of a stage or a layer. More digits, or another script's, are nobody's.
_NUMBER = "[0-9]{1,9}"


@dataclass(frozen=True)
class Format:
    """A way to name tensors. stages: what holds each side's stages; between: the numbers of a stage and of a layer in
    it; parts, ends: the tables above, ours to theirs; resampling: the layer between two stages; strided: where it is a
    strided convolution; matrices: our 1x1 convolutions that are matrices there."""

    name: str
    stages: Mapping[str, str]
    between: str
    parts: Mapping[str, tuple[str, ...]]
    ends: Mapping[str, tuple[str, ...]]
    resampling: str
    strided: str
    matrices: tuple[str, ...] = ()

    @cached_property
    def inside(self) -> re.Pattern[str]:
        """Names inside the stages: their stages, the two numbers, part and tensor."""
        stages = "|".join(re.escape(f"{side}.{stages}") for side, stages in self.stages.items())
        return re.compile(rf"({stages})\.({_NUMBER}){re.escape(self.between)}({_NUMBER})\.(.+)\.(\w+)")


class Place(NamedTuple):
    """What a name in a file speaks of. index: the layer's number in its stage, resampling counted; part: ours, or
    `resampling`; tensor: such as weight."""

    side: str
    stage: int
    index: int
    part: str
    tensor: str


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


MIT = Format(
    "MIT",
    {"encoder": "stages", "decoder": "stages"},
    ".op_list.",
    {ours: _tuple(mit) for ours, mit, _ in _PARTS},
    {ours: mit for ours, mit, _ in _ENDS},
    "main.conv.conv",
    "main.conv",
)
DIFFUSERS = Format(
    "diffusers",
    {"encoder": "down_blocks", "decoder": "up_blocks"},
    ".",
    {ours: _tuple(diffusers) for ours, _, diffusers in _PARTS},
    {ours: diffusers for ours, _, diffusers in _ENDS},
    "conv",
    "conv",
    ("attention.qkv", "attention.proj"),
)
FORMATS = (MIT, DIFFUSERS)

_OURS = re.compile(r"(encoder|decoder)\.stages\.(\d+)\.(?:blocks\.(\d+)\.(.+)|(?:down|up)\.conv)\.(\w+)")


def table(config: Config, form: Format) -> dict[str, dict[str, Shape]]:
    """Where each of our tensors comes from: by our name the tensors of the file, with their shapes there, whose rows it
    joins."""
    return {name: _theirs(name, shape, config, form) for name, shape in expected_shapes(config).items()}


def to_ours(tensors: Mapping[str, Tensor], config: Config, form: Format) -> dict[str, Tensor]:
    """A file's tensors by our names and in our shapes. Needs every tensor of the table."""
    shapes = expected_shapes(config)
    result = {}
    for name, theirs in table(config, form).items():
        parts = [tensors[part] for part in theirs]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        result[name] = whole.reshape(shapes[name])
    return result


def from_ours(tensors: Mapping[str, Tensor], config: Config, form: Format) -> dict[str, Tensor]:
    """Our tensors by a format's names and in its shapes. Needs every tensor of expected_shapes."""
    result = {}
    for name, theirs in table(config, form).items():
        parts = tensors[name].chunk(len(theirs)) if len(theirs) > 1 else [tensors[name]]
        for (part, shape), tensor in zip(theirs.items(), parts, strict=True):
            # Parts of one tensor share its memory, which safetensors refuses to write.
            result[part] = tensor.reshape(shape) if len(theirs) == 1 else tensor.reshape(shape).clone()
    return result


def place(name: str, form: Format) -> Place | None:
    """What a tensor inside the stages is; None for one at the ends, or of another format."""
    match = form.inside.fullmatch(name)
    if match is None:
        return None
    side, stage, index, theirs, tensor = match[1].partition(".")[0], int(match[2]), int(match[3]), match[4], match[5]
    if theirs in (form.resampling, form.strided):
        return Place(side, stage, index, "resampling", tensor)
    part = _part(theirs, form)
    return part and Place(side, stage, index, part, tensor)


def _part(theirs: str, form: Format) -> str | None:
    for ours, names in form.parts.items():
        for name in names:
            match = re.fullmatch(re.escape(name).replace(r"\#", r"(\d+)"), theirs)
            if match:
                return ours.replace("#", match[1]) if match.groups() else ours
    return None


def _theirs(name: str, shape: Shape, config: Config, form: Format) -> dict[str, Shape]:
    module, _, tensor = name.rpartition(".")
    if module in form.ends:
        forms = form.ends[module]
        chosen = forms[-1] if _other_form(module, config, form) else forms[0]
        return {f"{chosen}.{tensor}": shape}
    side, stage, block, part, _ = _OURS.fullmatch(name).groups()
    start = f"{side}.{form.stages[side]}.{stage}{form.between}"
    stages = config.encoder if side == "encoder" else config.decoder
    if part is None:
        # The encoder leaves a stage by it, the decoder enters one.
        index, strided = (stages[int(stage)].depth, config.down == STRIDED) if side == "encoder" else (0, False)
        return {f"{start}{index}.{form.strided if strided else form.resampling}.{tensor}": shape}
    index = int(block) + (side == "decoder" and int(stage) < len(stages) - 1)
    number = re.search(r"\.(\d+)\.", part)
    kind = re.sub(r"\.\d+\.", ".#.", part)
    names = [theirs.replace("#", number[1]) if number else theirs for theirs in form.parts[kind]]
    if kind in form.matrices:
        shape = shape[:2]
    if len(names) > 1:
        shape = (shape[0] // len(names), *shape[1:])
    return {f"{start}{index}.{theirs}.{tensor}": shape for theirs in names}


def _other_form(module: str, config: Config, form: Format) -> bool:
    """Whether a layer at an end has the second of its names: an outermost convolution that takes a step (MIT's strided
    one is named as an ordinary one), or one without a shortcut around it."""
    if module == "encoder.conv_in":
        return config.encoder[0].depth == 0 and (form is DIFFUSERS or config.down == UNSHUFFLE)
    if module == "decoder.conv_out":
        return config.decoder[0].depth == 0
    return not config.end_shortcuts
