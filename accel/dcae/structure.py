"""An autoencoder's make-up, from the names and shapes of its tensors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from .config import BATCH, EVIT, INTERPOLATE, RELU, RES, RMS, SHUFFLE, SILU, STRIDED, UNSHUFFLE, Config, Stage
from .keys import DIFFUSERS, Format, place
from .shapes import Shape

# By layer number in its stage: by part and tensor (`conv1.bias`), its shape.
Layers = dict[int, dict[str, Shape]]


def structure(shapes: Mapping[str, Shape], form: Format) -> Config:
    """The configuration that these tensors belong to, with a name made of its size and no scale.

    What names and shapes cannot tell is taken as in the published autoencoders: an attention head has 32 channels where
    no scale says otherwise, stages with batch norm have ReLU, a decoder without attention ends in SiLU, and an encoder
    without attention goes without end shortcuts (MIT's names do tell these). Raises ValueError where a tensor that has
    to say something is missing.
    """
    sides: dict[str, dict[int, Layers]] = {side: defaultdict(lambda: defaultdict(dict)) for side in form.stages}
    for name, shape in shapes.items():
        where = place(name, form)
        if where:
            sides[where.side][where.stage][where.index][f"{where.part}.{where.tensor}"] = shape
    encoder, decoder = (_stages(side, sides[side]) for side in ("encoder", "decoder"))
    if len(encoder) != len(decoder):
        raise ValueError(
            f"expected as many stages in the decoder as in the encoder, {len(encoder)}, found {len(decoder)}"
        )
    channels = _shape(shapes, form, "decoder.conv_in")[1]
    attention = [EVIT in (stage.block for stage in stages) for stages in (encoder, decoder)]
    grouped = [shape for name, shape in _tensors(sides) if name.endswith(".grouped.weight") and len(shape) == 4]
    return Config(
        f"f{2 ** (len(encoder) - 1)}c{channels}",
        channels,
        encoder,
        decoder,
        down=_down(shapes, form, encoder, sides["encoder"]),
        up=_up(shapes, form, decoder, sides["decoder"]),
        end_shortcuts=attention[0] if form is DIFFUSERS else f"{form.ends['encoder.conv_out'][0]}.weight" in shapes,
        final_act=RELU if attention[1] else SILU,
        head_dim=grouped[0][1] if grouped else 32,
    )


def _tensors(sides: Mapping[str, Mapping[int, Layers]]) -> Iterable[tuple[str, Shape]]:
    for stages in sides.values():
        for layers in stages.values():
            for tensors in layers.values():
                yield from tensors.items()


def _shape(shapes: Mapping[str, Shape], form: Format, end: str) -> Shape:
    """Of the weight of a convolution at an end."""
    names = [f"{name}.weight" for name in form.ends[end]]
    shape = next((shapes[name] for name in names if name in shapes), None)
    if shape is None:
        raise ValueError(f"expected a tensor {' or '.join(names)}, found none")
    if len(shape) != 4:
        raise ValueError(f"{names[0]}: expected 4 dimensions, found {list(shape)}")
    return shape


def _stages(side: str, stages: Mapping[int, Layers]) -> tuple[Stage, ...]:
    if not stages:
        raise ValueError(f"expected stages in the {side}, found none")
    result = [_stage(side, index, stages[index]) for index in range(max(stages) + 1)]
    if not any(stage.depth for stage in result):
        raise ValueError(f"expected blocks in the {side}, found none")
    if not result[0].depth and len(result) > 1:
        # No tensor has the width of a stage without any; that of the next is as good.
        result[0] = Stage(result[1].width, 0)
    return tuple(result)


def _stage(side: str, index: int, layers: Layers) -> Stage:
    blocks = {number: tensors for number, tensors in layers.items() if not _resamples(tensors)}
    if not blocks:
        if index:
            raise ValueError(f"expected blocks in stage {index} of the {side}, found none")
        return Stage(0, 0)
    # By the highest number, so that a block which is missing between others is missed later, by name.
    depth = max(blocks) + (0 if side == "decoder" and _resamples(layers[0]) else 1)
    tensors = [tensor for block in blocks.values() for tensor in block.items()]
    if depth > len(tensors):
        raise ValueError(
            f"expected blocks one after another in stage {index} of the {side}, found a number {max(blocks)} and "
            f"{len(tensors)} tensors in all"
        )
    names = {name for name, _ in tensors}
    widths = Counter(
        shape[0]
        for name, shape in tensors
        if name in ("conv1.bias", "norm.weight", "norm.bias", "attention.norm.weight", "feed_forward.norm.weight")
        and len(shape) == 1
    )
    if not widths:
        raise ValueError(f"expected norms and convolutions in stage {index} of the {side}, found none")
    # The most frequent one: a single tensor of a wrong shape is then named as such.
    width = widths.most_common(1)[0][0]
    if any(name.startswith(("conv1.", "conv2.")) for name in names):
        batch = "norm.running_mean" in names
        return Stage(width, depth, RES, norm=BATCH if batch else RMS, act=RELU if batch else SILU)
    kernels = {
        name: shape[-1]
        for name, shape in tensors
        if name.endswith(".depthwise.weight") and ".scales." in name and len(shape) == 4
    }
    return Stage(width, depth, EVIT, tuple(kernels[name] for name in sorted(kernels)))


def _resamples(layer: Mapping[str, Shape]) -> bool:
    return "resampling.weight" in layer or "resampling.bias" in layer


def _down(shapes: Mapping[str, Shape], form: Format, stages: tuple[Stage, ...], layers: Mapping[int, Layers]) -> str:
    """By whether most layers between stages give as many channels as the stage behind them has."""
    widths = [(stages[index + 1].width, shape[0]) for index, shape in _resampling(layers, len(stages))]
    if not stages[0].depth:
        widths.append((stages[0].width, _shape(shapes, form, "encoder.conv_in")[0]))
    return STRIDED if _most([width == outputs for width, outputs in widths]) else UNSHUFFLE


def _up(shapes: Mapping[str, Shape], form: Format, stages: tuple[Stage, ...], layers: Mapping[int, Layers]) -> str:
    widths = [(stages[index].width, shape[0]) for index, shape in _resampling(layers, len(stages))]
    if not stages[0].depth:
        widths.append((3, _shape(shapes, form, "decoder.conv_out")[0]))
    return INTERPOLATE if _most([width == outputs for width, outputs in widths]) else SHUFFLE


def _resampling(stages: Mapping[int, Layers], count: int) -> Iterable[tuple[int, Shape]]:
    for index in range(count - 1):
        for layer in stages[index].values():
            if layer.get("resampling.weight"):
                yield index, layer["resampling.weight"]


def _most(votes: list[bool]) -> bool:
    return 2 * sum(votes) > len(votes)
