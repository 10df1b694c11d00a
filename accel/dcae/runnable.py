"""What a network needs of its configuration in order to run."""

from __future__ import annotations

from itertools import pairwise

from .config import EVIT, UNSHUFFLE, Config, Stage


def need_runnable(config: Config) -> None:
    """Raises ValueError naming the stage, what was expected and what was found, where widths do not divide as heads,
    steps and shortcuts divide them (resample.py, linear_attention.py)."""
    channels = config.latent_channels
    _need(channels > 0, "latent", "channels", channels)
    for side, stages in (("encoder", config.encoder), ("decoder", config.decoder)):
        for index, stage in enumerate(stages):
            where = f"stage {index} of the {side}"
            _need(stage.width > 0, where, "a width", stage.width)
            if stage.block == EVIT:
                _need_heads(stage, config.head_dim, where)
        for index, (stage, inner) in enumerate(pairwise(stages)):
            where, wide = f"the step to stage {index + 1} of the {side}", 4 * stage.width
            if side == "encoder" and config.down == UNSHUFFLE:
                _need(inner.width % 4 == 0, where, "a multiple of 4 channels", inner.width)
            if stage.depth:
                _need(wide % inner.width == 0, where, f"a divisor of {wide} channels", inner.width)
        if config.end_shortcuts:
            width = stages[-1].width
            _need(width % channels == 0, f"the {side}'s innermost stage", f"a multiple of {channels} channels", width)


def _need_heads(stage: Stage, head_dim: int, where: str) -> None:
    _need(head_dim > 0 and stage.width % head_dim == 0, where, f"heads of {head_dim} channels", stage.width)
    for kernel in stage.scales:
        _need(kernel % 2 == 1, where, "an odd kernel", kernel)


def _need(right: bool, where: str, expected: str, found: int) -> None:
    if not right:
        raise ValueError(f"{where}: expected {expected}, found {found}")
