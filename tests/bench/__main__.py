"""The benches that we run ourselves: `python -m dit_accel.tests.bench SUBJECT ...`. README.md says what each is for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dit_accel.accel.cli import arguments as types
from dit_accel.accel.cli.bench_inputs import add_input_options
from dit_accel.accel.cli.main import run_command

PROGRAM = "python -m dit_accel.tests.bench"
PACKAGE = "dit_accel.tests.bench"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line `arguments` (default: the process's) and returns its exit status."""
    return run_command(PROGRAM, _parser(), arguments, PACKAGE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Tables of times and errors, for whoever works on them.")
    subjects = parser.add_subparsers(required=True, metavar="subject")
    _add_speed(subjects)
    _add_quality(subjects)
    _add_device(subjects)
    roofline = subjects.add_parser("roofline", help="the page kernels/ROOFLINE.md, to the standard output")
    roofline.set_defaults(module="roofline")
    return parser


def _add_speed(subjects) -> None:
    """Benches whose rows are kept in files that `show` prints and `bars` judges."""
    attention = subjects.add_parser("attention", help="`dit-accel bench attention`, other people's attention beside")
    add_input_options(attention)
    types.add_attention_options(attention)
    attention.add_argument("--no-baselines", action="store_true", help="leave out other people's attention")
    attention.set_defaults(module="commands.attention")

    planning = subjects.add_parser("planning", help="what every step of planning takes, beside dense attention")
    add_input_options(planning)
    planning.add_argument("--pattern", nargs="+", default=None, help="patterns (default: all)")
    planning.add_argument("--density", type=types.density, nargs="+", default=[0.3], help="0.01 to 1 (default 0.3)")
    types.add_row_options(planning)
    planning.set_defaults(module="commands.planning")

    linear = subjects.add_parser("linear", help="a layer with 4-bit weights on every path, beside the plain one")
    linear.add_argument(
        "--size", type=types.layer_size, nargs="+", metavar="NxK", help="output by input channels of the layers"
    )
    linear.add_argument("--tokens", type=types.positive, help="rows of the input (default 32760 on a GPU, else 64)")
    types.add_row_options(linear)
    linear.set_defaults(module="commands.linear")

    forward = subjects.add_parser("forward", help="a block and a whole forward of Wan's shape, dense and sparse")
    forward.add_argument("--layers", type=types.positive, nargs="+", help="of each model (default 1 40; off a GPU 1 2)")
    forward.add_argument(
        "--grid", type=types.grid, nargs="+", metavar="TxHxW", help="tokens (default 21x45x80; off a GPU 4x8x10)"
    )
    forward.add_argument("--dim", type=types.positive, help="channels of a token (default 5120; off a GPU 256)")
    forward.add_argument("--heads", type=types.positive, help="(default 40; off a GPU 2)")
    forward.add_argument("--pattern", nargs="+", default=["svg2"], help="patterns (default svg2)")
    forward.add_argument("--density", type=types.density, nargs="+", default=[0.25], help="0.01 to 1 (default 0.25)")
    forward.add_argument("--top-p", type=types.mass, help="instead of --density: mass to keep, 0.05 to 1")
    forward.add_argument("--max-density", type=types.density, default=1.0, help="with --top-p: most keys (default 1)")
    types.add_precision_option(forward)
    types.add_row_options(forward)
    forward.set_defaults(module="commands.forward")

    dcae = subjects.add_parser("dcae", help="an image autoencoder at once and in strips, beside diffusers'")
    dcae.add_argument("--variant", default="f32c32-sana-1.0", help="its make-up (default f32c32-sana-1.0)")
    dcae.add_argument(
        "--pixels",
        type=types.positive,
        nargs="+",
        help="sides of the pictures (default 1024 2048 4096; off a GPU 512 1024)",
    )
    dcae.add_argument("--rows", type=types.positive, default=8, help="latent rows in a strip (default 8)")
    types.add_row_options(dcae)
    dcae.set_defaults(module="commands.dcae")

    show = subjects.add_parser("show", help="prints the tables of files that other benches of speed wrote")
    show.add_argument("files", type=Path, nargs="+")
    show.set_defaults(module="commands.show")

    bars = subjects.add_parser("bars", help="holds such files against the bars of speed on an H200")
    bars.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    bars.add_argument("--json", type=Path, help="write every bar, what was measured and the machine here")
    bars.set_defaults(module="commands.bars")


def _add_quality(subjects) -> None:
    """Benches of what sparse attention does to a model."""
    capture = subjects.add_parser("capture", help="q, k, v of a model on real frames, for the other benches")
    capture.add_argument("--output", type=Path, default=Path("capture.safetensors"), help="the file to write")
    capture.add_argument(
        "--grid",
        type=types.positive,
        nargs=3,
        default=[9, 18, 30],
        metavar=("T", "H", "W"),
        help="tokens (default 9 18 30)",
    )
    capture.add_argument("--blocks", type=types.index, nargs="+", help="transformer blocks to keep (default: all)")
    capture.add_argument("--heads", type=types.index, nargs="+", help="heads to keep (default: all)")
    capture.add_argument(
        "--sigmas", type=types.sigma, nargs="+", default=[0.7], help="noise levels, one forward at each (default 0.7)"
    )
    capture.add_argument(
        "--clip", type=Path, help="a video file, or `drawn` for a drawn clip (default: Big Buck Bunny)"
    )
    capture.add_argument("--prompt", default="bunny", help="a prompt that the bundled model knows (default bunny)")
    for name in ("model", "vae", "conditioning"):
        capture.add_argument(f"--{name}", type=Path, help=f"the {name} file, all three or none (default: bundled)")
    capture.set_defaults(module="commands.capture")

    quality = subjects.add_parser("quality", help="every pattern's error at equal density, on captures")
    quality.add_argument("--capture", type=Path, nargs="+", required=True, help="files that `capture` wrote")
    quality.add_argument("--density", type=types.density, nargs="+", default=[0.1, 0.2, 0.3, 0.5], help="0.01 to 1")
    quality.add_argument("--pattern", nargs="+", help="patterns (default: all)")
    quality.add_argument("--json", type=Path, help="write every row, the inputs' hashes and the machine here")
    quality.set_defaults(module="commands.quality")

    video = subjects.add_parser("video", help="every pattern's whole clips against dense ones, at equal density")
    video.add_argument("--density", type=types.density, nargs="+", default=[0.3, 0.15], help="0.01 to 1")
    video.add_argument("--prompt", nargs="+", default=["bunny"], help="prompts that the bundled model knows")
    video.add_argument("--seeds", type=types.positive, default=3, help="how many seeds (default 3)")
    video.add_argument("--times", action="store_true", help="time a second run of each, without decoding")
    types.add_clip_options(video)
    video.add_argument("--json", type=Path, help="write every row and the machine here")
    video.set_defaults(module="commands.video")

    budgets = subjects.add_parser("budgets", help="what recording and the guard cost, and whether profiles hold")
    budgets.add_argument("--json", type=Path)
    budgets.set_defaults(module="budgets")

    lightglue = subjects.add_parser("lightglue", help="a capture of another trained attention, LightGlue's")
    lightglue.add_argument("--clip", type=Path, required=True, help="a video of 720p")
    lightglue.add_argument("--frame", type=int, default=60)
    lightglue.add_argument("--keypoints", type=int, default=4096)
    lightglue.add_argument("--output", type=Path, required=True)
    lightglue.set_defaults(module="lightglue")


def _add_device(subjects) -> None:
    """What has to hold on a device before its times count, and what the first run on it waits for."""
    for name, words in (
        ("gpu_tests", "the tests marked gpu, a file at a time"),
        ("sanitizer", "small_calls under compute-sanitizer's memcheck and racecheck"),
    ):
        checks = subjects.add_parser(name, help=words)
        checks.add_argument("--json", type=Path)
        checks.add_argument("--log", type=Path, help="gets all output")
        checks.set_defaults(module="checks", check=name)

    small = subjects.add_parser("small_calls", help="every operation once on small shapes")
    small.set_defaults(module="small_calls")

    first_calls = subjects.add_parser("first_calls", help="the first attention calls on a new machine, from nothing")
    first_calls.add_argument("--grid", type=int, nargs=3, default=[21, 30, 52], metavar=("T", "H", "W"))
    first_calls.add_argument("--heads", type=int, default=12)
    first_calls.add_argument("--json", type=Path)
    first_calls.set_defaults(module="first_calls")

    first_compile = subjects.add_parser("first_compile", help="how long Triton compiles for a chip, with no GPU")
    first_compile.add_argument("chip", help="such as sm_90")
    first_compile.add_argument("--json", type=Path)
    first_compile.set_defaults(module="first_compile")


if __name__ == "__main__":
    sys.exit(main())
