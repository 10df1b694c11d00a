"""The tensors that an autoencoder is made of."""

from __future__ import annotations

from collections.abc import Iterator

from .config import BATCH, INTERPOLATE, RES, STRIDED, Config, Stage

Shape = tuple[int, ...]


def expected_shapes(config: Config) -> dict[str, Shape]:
    """The shape of every tensor, by our names: what the network's state_dict holds.

    {encoder, decoder}.stages.S.blocks.B counts stages from full resolution down and B within the blocks only.
    encoder.stages.S.down leads from stage S to S + 1 and decoder.stages.S.up back.
    """
    shapes: dict[str, Shape] = {}
    for side, stages in (("encoder", config.encoder), ("decoder", config.decoder)):
        for index, stage in enumerate(stages):
            for block in range(stage.depth):
                tensors = _res(stage) if stage.block == RES else _evit(stage, config.head_dim)
                shapes |= {f"{side}.stages.{index}.blocks.{block}.{name}": shape for name, shape in tensors}
    for name, outputs, inputs in _convolutions(config):
        shapes |= {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}
    width = _outermost(config.decoder).width
    return shapes | {"decoder.norm_out.weight": (width,), "decoder.norm_out.bias": (width,)}


def _outermost(stages: tuple[Stage, ...]) -> Stage:
    return next(stage for stage in stages if stage.depth)


def _res(stage: Stage) -> Iterator[tuple[str, Shape]]:
    width = stage.width
    yield "conv1.weight", (width, width, 3, 3)
    yield "conv1.bias", (width,)
    yield "conv2.weight", (width, width, 3, 3)
    yield "norm.weight", (width,)
    yield "norm.bias", (width,)
    if stage.norm == BATCH:
        yield "norm.running_mean", (width,)
        yield "norm.running_var", (width,)
        yield "norm.num_batches_tracked", ()


def _evit(stage: Stage, head_dim: int) -> Iterator[tuple[str, Shape]]:
    width, inner = stage.width, 8 * stage.width
    yield "attention.qkv.weight", (3 * width, width, 1, 1)
    for index, kernel in enumerate(stage.scales):
        yield f"attention.scales.{index}.depthwise.weight", (3 * width, 1, kernel, kernel)
        yield f"attention.scales.{index}.grouped.weight", (3 * width, head_dim, 1, 1)
    yield "attention.proj.weight", (width, (1 + len(stage.scales)) * width, 1, 1)
    yield "attention.norm.weight", (width,)
    yield "attention.norm.bias", (width,)
    yield "feed_forward.expand.weight", (inner, width, 1, 1)
    yield "feed_forward.expand.bias", (inner,)
    yield "feed_forward.depthwise.weight", (inner, 1, 3, 3)
    yield "feed_forward.depthwise.bias", (inner,)
    yield "feed_forward.project.weight", (width, inner // 2, 1, 1)
    yield "feed_forward.norm.weight", (width,)
    yield "feed_forward.norm.bias", (width,)


def _convolutions(config: Config) -> Iterator[tuple[str, int, int]]:
    """The 3x3 convolutions outside of blocks: name, output and input channels."""
    shrink, grow = 1 if config.down == STRIDED else 4, 1 if config.up == INTERPOLATE else 4
    encoder, decoder = config.encoder, config.decoder
    yield "encoder.conv_in", _outermost(encoder).width // (1 if encoder[0].depth else shrink), 3
    yield "decoder.conv_out", 3 * (1 if decoder[0].depth else grow), _outermost(decoder).width
    yield "encoder.conv_out", config.latent_channels, encoder[-1].width
    yield "decoder.conv_in", decoder[-1].width, config.latent_channels
    for index in range(len(encoder) - 1):
        if encoder[index].depth:
            yield f"encoder.stages.{index}.down.conv", encoder[index + 1].width // shrink, encoder[index].width
        if decoder[index].depth:
            yield f"decoder.stages.{index}.up.conv", decoder[index].width * grow, decoder[index + 1].width
