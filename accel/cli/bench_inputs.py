"""What the benches of speed run on: captures, the clip's projections, or those of a drawn clip."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from . import Problem
from .arguments import grid, positive
from .needs import need_clip

if TYPE_CHECKING:
    from ..bench.inputs import Inputs

PROJECTIONS_NOTE = (
    "Inputs: patches of {clip} through fixed random projections, not a trained model's: "
    "`python -m dit_accel.tests.bench capture` makes such."
)
CAPTURE_NOTE = "Inputs: what a trained model computed on real frames."


def add_input_options(command: argparse.ArgumentParser) -> None:
    """--capture, --drawn or --tokens, and what the latter two need."""
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--capture", type=Path, nargs="+", help="captures, made by `python -m dit_accel.tests.bench capture`"
    )
    command.add_argument(
        "--stack-heads",
        type=positive,
        metavar="N",
        help="with --capture: the heads of several calls of one size side by side, as one call of N heads",
    )
    source.add_argument("--drawn", type=grid, nargs="+", metavar="TxHxW", help="grids of tokens of a drawn clip")
    source.add_argument(
        "--tokens",
        type=positive,
        nargs="+",
        default=[1024, 4096],
        help="sequence lengths, met approximately, of Big Buck Bunny (default 1024 4096)",
    )
    command.add_argument("--heads", type=positive, default=2, help="of a clip's projections (default 2)")
    command.add_argument("--head-dim", type=int, choices=(64, 128), default=128, help="likewise (default 128)")


def need_inputs(options: argparse.Namespace) -> tuple[Iterable[Inputs], int]:
    """The inputs that the options ask for, made one by one, and their head dimension. Raises Problem when something
    is missing."""
    _need("torch", "torch")
    if options.stack_heads and not options.capture:
        raise Problem("--stack-heads: expected with --capture")
    if options.capture:
        captured = _captured(options.capture, options.stack_heads)
        print(CAPTURE_NOTE)
        return captured, captured[0].q.shape[-1]
    if options.drawn:
        print(PROJECTIONS_NOTE.format(clip="a drawn clip"))
        return _drawn(options), options.head_dim
    _need("av", "PyAV")
    clip = need_clip()
    print(PROJECTIONS_NOTE.format(clip="the Big Buck Bunny clip"))
    return _projected(options, clip), options.head_dim


def _need(module: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Problem(f"{name} is missing; ComfyUI's requirements bring it: pip install -r requirements.txt there")


def _captured(paths: list[Path], heads: int | None) -> list[Inputs]:
    from ..bench.inputs import captured_inputs, stacked_inputs

    try:
        if heads:
            captured = stacked_inputs(paths, heads)
        else:
            captured = [inputs for path in paths for inputs in captured_inputs(path)]
    except (ValueError, OSError) as error:
        raise Problem(f"--{'stack-heads' if heads else 'capture'}: {error}") from error
    head_dims = sorted({inputs.q.shape[-1] for inputs in captured})
    if len(head_dims) > 1:
        raise Problem(f"--capture: expected files of one head dimension, found {head_dims}")
    return captured


def _drawn(options: argparse.Namespace) -> Iterable[Inputs]:
    from ..bench.inputs import drawn_inputs

    return (drawn_inputs(grid, options.heads, options.head_dim) for grid in options.drawn)


def _projected(options: argparse.Namespace, clip: Path) -> Iterable[Inputs]:
    from ..bench.inputs import video_inputs

    for tokens in options.tokens:
        try:
            yield video_inputs(clip, tokens, options.heads, options.head_dim)
        except ValueError as error:
            raise Problem(f"--{error}") from error
