"""Types and groups of options that several commands share, for argparse."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


def index(text: str) -> int:
    """A whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, found {value}")
    return value


def grid(text: str) -> tuple[int, int, int]:
    """Tokens as FRAMESxHEIGHTxWIDTH."""
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected frames x height x width in tokens such as 21x45x80, found {text}")
    return tuple(map(int, sizes))


def layer_size(text: str) -> tuple[int, int]:
    """A linear layer as OUTPUTxINPUT channels, the input a multiple of 64."""
    sizes = text.split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and int(size) for size in sizes) or int(sizes[1]) % 64:
        raise argparse.ArgumentTypeError(f"expected output x input channels such as 5120x13824, found {text}")
    return tuple(map(int, sizes))


def sigma(text: str) -> float:
    """A noise level, above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, up to 1, found {text}")
    return value


def mass(text: str) -> float:
    """Attention mass to keep, 0.05 to 1."""
    value = float(text)
    if not 0.05 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0.05 to 1, found {text}")
    return value


def density(text: str) -> float:
    """The kept fraction of the attention map, 0.01 to 1."""
    value = float(text)
    if not 0.01 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0.01 to 1, found {text}")
    return value


def add_clip_options(command: argparse.ArgumentParser) -> None:
    """The clip that the bundled model samples, and the patterns to sample it with."""
    command.add_argument("--frames", type=positive, default=33, help="frames to make (default 33)")
    command.add_argument("--width", type=positive, default=320, help="picture width in pixels (default 320)")
    command.add_argument("--steps", type=positive, default=12, help="sampling steps, at least 2 (default 12)")
    command.add_argument("--pattern", nargs="+", help="patterns (default: all)")


def add_precision_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--precision", nargs="+", choices=("16-bit", "8-bit"), default=["16-bit"], help="8-bit: as the chip can"
    )


def add_row_options(command: argparse.ArgumentParser) -> None:
    """How often to measure, and the file of rows (row_file.py)."""
    command.add_argument(
        "--repeats", type=positive, help="runs in each of the two medians (default 20 on a GPU, else 3)"
    )
    command.add_argument("--json", type=Path, help="written after every row, with the inputs' hashes and the machine")
    command.add_argument("--resume", action="store_true", help="keep the rows that --json has, and measure the others")


def add_attention_options(command: argparse.ArgumentParser) -> None:
    """What `bench attention` measures; bench_inputs.py has the options of what it measures on."""
    command.add_argument("--pattern", nargs="+", default=None, help="patterns (default: all)")
    command.add_argument("--density", type=density, nargs="+", help="densities to bring every pattern to, 0.01 to 1")
    command.add_argument("--top-p", type=mass, default=0.9, help="without --density: mass to keep (default 0.9)")
    command.add_argument("--max-density", type=density, default=1.0, help="without --density: most keys (default 1)")
    command.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of q, k and v (default bfloat16 on a GPU, else float32)",
    )
    add_precision_option(command)
    add_row_options(command)
