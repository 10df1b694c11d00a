"""`dit-accel`: the entry point. Commands import what they need when they run, so that --help is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import Problem


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line `arguments` (default: the process's) and returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except Problem as problem:
        print(f"dit-accel: {problem}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dit-accel", description="Sparse attention for video diffusion transformers in ComfyUI."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    doctor = commands.add_parser("doctor", help="what was found here, and what runs on it")
    doctor.set_defaults(run=_doctor)

    demo = commands.add_parser("demo", help="one graph in a headless ComfyUI, dense and with every pattern")
    demo.add_argument("--output", type=Path, default=Path("dit-accel-demo"), help="folder for the results")
    demo.add_argument("--prompt", default="bunny", help="a prompt that the bundled model knows (default bunny)")
    _add_clip_options(demo)
    demo.add_argument("--top-p", type=_mass, default=0.9, help="attention mass to keep, 0.05 to 1 (default 0.9)")
    demo.set_defaults(run=_demo)

    capture = commands.add_parser("capture", help="q, k, v of a model on real frames, for the bench")
    capture.add_argument("--output", type=Path, default=Path("capture.safetensors"), help="the file to write")
    capture.add_argument(
        "--grid", type=_positive, nargs=3, default=[9, 18, 30], metavar=("T", "H", "W"), help="tokens (default 9 18 30)"
    )
    capture.add_argument("--blocks", type=_index, nargs="+", help="transformer blocks to keep (default: all)")
    capture.add_argument("--heads", type=_index, nargs="+", help="heads to keep (default: all)")
    capture.add_argument(
        "--sigmas", type=_sigma, nargs="+", default=[0.7], help="noise levels, one forward at each (default 0.7)"
    )
    capture.add_argument("--clip", type=Path, help="a video file (default: Big Buck Bunny)")
    capture.add_argument("--prompt", default="bunny", help="a prompt that the bundled model knows (default bunny)")
    for name in ("model", "vae", "conditioning"):
        capture.add_argument(f"--{name}", type=Path, help=f"the {name} file, all three or none (default: bundled)")
    capture.set_defaults(run=_capture)

    bench = commands.add_parser("bench", help="tables of times and errors")
    subjects = bench.add_subparsers(required=True, metavar="subject")
    attention = subjects.add_parser("attention", help="sparse attention beside dense attention")
    attention.add_argument(
        "--tokens", type=_positive, nargs="+", default=[1024, 4096], help="sequence lengths, met approximately"
    )
    attention.add_argument("--heads", type=_positive, default=2)
    attention.add_argument("--head-dim", type=int, choices=(64, 128), default=128)
    attention.add_argument("--pattern", nargs="+", default=None, help="patterns (default: all)")
    attention.add_argument("--top-p", type=_mass, default=0.9, help="attention mass to keep, 0.05 to 1 (default 0.9)")
    attention.add_argument("--max-density", type=_density, default=1.0, help="most of the keys to keep (default 1)")
    attention.add_argument("--capture", type=Path, help="measure on what `dit-accel capture` wrote, not on --tokens")
    attention.add_argument("--repeats", type=_positive, default=5, help="timed runs; the median is shown")
    attention.add_argument("--json", type=Path, help="write the rows, the inputs' hashes and the machine here")
    attention.set_defaults(run=_bench_attention)

    quality = subjects.add_parser("quality", help="every pattern's error at equal density, on captures")
    quality.add_argument("--capture", type=Path, nargs="+", required=True, help="files that `dit-accel capture` wrote")
    quality.add_argument("--density", type=_density, nargs="+", default=[0.1, 0.2, 0.3, 0.5], help="0.01 to 1")
    quality.add_argument("--pattern", nargs="+", help="patterns (default: all)")
    quality.add_argument("--json", type=Path, help="write every row, the inputs' hashes and the machine here")
    quality.set_defaults(run=_bench_quality)

    video = subjects.add_parser("video", help="every pattern's whole clips against dense ones, at equal density")
    video.add_argument("--density", type=_density, nargs="+", default=[0.3, 0.15], help="0.01 to 1")
    video.add_argument("--prompt", nargs="+", default=["bunny"], help="prompts that the bundled model knows")
    video.add_argument("--seeds", type=_positive, default=3, help="how many seeds (default 3)")
    _add_clip_options(video)
    video.add_argument("--json", type=Path, help="write every row and the machine here")
    video.set_defaults(run=_bench_video)
    return parser


def _add_clip_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--frames", type=_positive, default=33, help="frames to make (default 33)")
    command.add_argument("--width", type=_positive, default=320, help="picture width in pixels (default 320)")
    command.add_argument("--steps", type=_positive, default=12, help="sampling steps, at least 2 (default 12)")
    command.add_argument("--pattern", nargs="+", help="patterns (default: all)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


def _index(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, found {value}")
    return value


def _sigma(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, up to 1, found {text}")
    return value


def _mass(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0.05 to 1, found {text}")
    return value


def _density(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0.01 to 1, found {text}")
    return value


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import run

    return run(options)


def _demo(options: argparse.Namespace) -> int:
    from .demo import run

    return run(options)


def _capture(options: argparse.Namespace) -> int:
    from .capture import run

    return run(options)


def _bench_attention(options: argparse.Namespace) -> int:
    from .bench import run

    return run(options)


def _bench_video(options: argparse.Namespace) -> int:
    from .bench_video import run

    return run(options)


def _bench_quality(options: argparse.Namespace) -> int:
    from .bench_quality import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
