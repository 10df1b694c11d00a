"""Which autoencoder a file holds, from the names and shapes of its tensors and from what is said about it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .config import CONFIGS, Config, Stage
from .hints import AUTO, Hints
from .keys import FORMATS, Format, place
from .shapes import Shape
from .structure import structure

# What stands before the names of an autoencoder's tensors: the packer's word for it.
_PREFIX = re.compile(r"((?:.*\.)?)(?:encoder|decoder)\.")
# Other autoencoders that people have in the same folder: a tensor of theirs and, where others have it too, its shape
# without the output channels.
_OTHERS = (
    ("Stable Diffusion 1, 2 or XL", "decoder.conv_in.weight", (4, 3, 3)),
    ("Stable Diffusion 3, FLUX.1 or another of 16 channels", "decoder.conv_in.weight", (16, 3, 3)),
    ("FLUX.2", "decoder.conv_in.weight", (32, 3, 3)),
    ("HunyuanImage 2.1", "decoder.conv_in.weight", (64, 3, 3)),
    ("CogVideoX", "decoder.mid_block.resnets.0.norm1.norm_layer.weight", None),
    ("HunyuanVideo", "decoder.conv_in.conv.weight", (16, 3, 3, 3)),
    ("HunyuanVideo 1.5", "decoder.conv_in.conv.weight", (32, 3, 3, 3)),
    ("LTX-Video", "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight", None),
    ("Wan or Qwen-Image", "decoder.middle.0.residual.0.gamma", None),
    ("TAESD", "taesd_decoder.1.weight", None),
)


def detect(shapes: Mapping[str, Sequence[int]], hints: Hints = Hints()) -> Config:  # noqa: B008
    """The configuration of the tensors with these names and shapes, in MIT's or diffusers' format.

    One of config.CONFIGS where the shapes are its own, with the scale that the hints give where it has none; else one
    made from the shapes and the hints, named by its size. Raises ValueError where the tensors are no image DC-AE's,
    where the variant asked for has other ones, and where they may be of several with different scales.
    """
    return detect_format(shapes, hints)[0]


def detect_format(shapes: Mapping[str, Sequence[int]], hints: Hints) -> tuple[Config, Format, str]:
    """As detect; also the format, and what stands before the names."""
    form, prefix = _format(shapes)
    inside = {name.removeprefix(prefix): tuple(shape) for name, shape in shapes.items() if name.startswith(prefix)}
    _need_images(inside, form)
    config = structure(inside, form)
    published = [known for known in CONFIGS.values() if _same(known, config)]
    if hints.variant != AUTO:
        return _variant(hints, config, published), form, prefix
    hinted = hints.applied(config)
    return _choose([known for known in published if _same(known, hinted)], hinted, hints), form, prefix


def _format(shapes: Mapping[str, Sequence[int]]) -> tuple[Format, str]:
    """The format and prefix of most of the tensors."""
    votes: Counter[tuple[str, str]] = Counter()
    for name in shapes:
        match = _PREFIX.match(name)
        if match:
            bare = name[len(match[1]) :]
            votes.update((form.name, match[1]) for form in FORMATS if place(bare, form))
    if not votes:
        raise ValueError(f"expected the tensors of a DC-AE image autoencoder, found {_described(shapes)}")
    (chosen, prefix), _ = votes.most_common(1)[0]
    return next(form for form in FORMATS if form.name == chosen), prefix


def _described(shapes: Mapping[str, Sequence[int]]) -> str:
    for kind, name, shape in _OTHERS:
        for prefix in ("", "vae.", "first_stage_model."):
            actual = shapes.get(prefix + name)
            if actual is not None and shape in (None, tuple(actual[1:])):
                return f"those of {kind}"
    return f"{len(shapes)} others, such as {next(iter(shapes))}" if shapes else "none"


def _need_images(shapes: Mapping[str, Shape], form: Format) -> None:
    """Raises ValueError for DC-AEs of video and of sound."""
    for end, channels in (("encoder.conv_in", 1), ("decoder.conv_in", None)):
        shape = next((shapes[f"{name}.weight"] for name in form.ends[end] if f"{name}.weight" in shapes), ())
        if len(shape) == 5:
            raise ValueError("expected a DC-AE of images, found one of video (DC-AE-V), which is not supported yet")
        if len(shape) == 4 and channels and shape[channels] == 2:
            raise ValueError("expected a DC-AE of images, found one of stereo sound (ACE-Step)")
        if len(shape) == 4 and channels and shape[channels] != 3:
            raise ValueError(f"expected a DC-AE of images with 3 channels, found one with {shape[channels]}")


def _same(a: Config, b: Config) -> bool:
    """Whether they agree in all that tensors can tell."""
    return _comparable(a) == _comparable(b)


def _comparable(config: Config) -> Config:
    encoder, decoder = (
        tuple(stage if stage.depth else Stage(0, 0) for stage in stages) for stages in (config.encoder, config.decoder)
    )
    return replace(config, name="", scale=None, encoder=encoder, decoder=decoder)


def _variant(hints: Hints, config: Config, published: Sequence[Config]) -> Config:
    """The variant that the user chose, for tensors of `config`."""
    if hints.variant not in CONFIGS:
        raise ValueError(f"variant: expected auto or one of {', '.join(CONFIGS)}, found {hints.variant}")
    chosen = CONFIGS[hints.variant]
    if chosen not in published:
        shapes = " or ".join(known.name for known in published) or f"an unpublished autoencoder ({config.name})"
        raise ValueError(
            f"variant: expected the tensors of {chosen.name}, which was asked for, found those of {shapes}"
        )
    return chosen if chosen.scale is not None else replace(chosen, scale=hints.applied(config).scale)


def _choose(published: list[Config], hinted: Config, hints: Hints) -> Config:
    """The one that the hints tell; of those that share a scale too, the first if they say nothing. hinted: what the
    tensors are, with what the hints say of it."""
    if hinted.scale is not None:
        published = [config for config in published if config.scale is None or _close(config.scale, hinted.scale)]
    if not published:
        return hinted
    if len(published) == 1:
        return published[0] if published[0].scale is not None else replace(published[0], scale=hinted.scale)
    candidates = hints.candidates(published)
    chosen = [config for config in published if all(config.name in names for names in candidates.values())]
    if candidates and len(chosen) == 1:
        return chosen[0]
    if len({config.scale for config in published}) == 1:
        return published[0]
    names = " or ".join(config.name for config in published)
    texts = "; ".join(f"{where}: {', '.join(sorted(names))}" for where, names in candidates.items())
    raise ValueError(
        f"variant: expected a hint whether this is {names}, which differ in scale but not in their tensors, "
        f"found {texts or 'none in its name, metadata or config.json'}: choose the variant"
    )


def _close(scale: float, other: float) -> bool:
    return math.isclose(scale, other, rel_tol=1e-3)
