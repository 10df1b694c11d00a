"""`dit-accel`: the entry point. Commands import what they need when they run, so that --help is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import Problem
from .bench_inputs import add_input_options


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
    capture.add_argument(
        "--clip", type=Path, help="a video file, or `drawn` for a drawn clip (default: Big Buck Bunny)"
    )
    capture.add_argument("--prompt", default="bunny", help="a prompt that the bundled model knows (default bunny)")
    for name in ("model", "vae", "conditioning"):
        capture.add_argument(f"--{name}", type=Path, help=f"the {name} file, all three or none (default: bundled)")
    capture.set_defaults(run=_capture)

    convert = commands.add_parser("convert", help="a 4-bit model as one file in ComfyUI's convention")
    convert.add_argument("source", type=Path, metavar="SOURCE", help="a nunchaku or comfy_quant file, or a folder")
    convert.add_argument("target", type=Path, metavar="TARGET", help="the safetensors file to write")
    convert.set_defaults(run=_convert)

    preview = commands.add_parser("fit-preview", help="what ComfyUI needs to preview latents of a DC-AE")
    preview.add_argument("--vae", type=Path, required=True, help="the DC-AE, a file in MIT's or diffusers' format")
    preview.add_argument("--variant", default="auto", help="which DC-AE it is (default auto: as its file says)")
    preview.add_argument("--pictures", type=Path, required=True, help="a folder of pictures, a hundred or more")
    preview.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    preview.set_defaults(run=_fit_preview)

    bench = commands.add_parser("bench", help="tables of times and errors")
    subjects = bench.add_subparsers(required=True, metavar="subject")
    attention = subjects.add_parser("attention", help="sparse attention beside dense attention")
    add_input_options(attention, _positive, _grid)
    attention.add_argument("--pattern", nargs="+", default=None, help="patterns (default: all)")
    attention.add_argument("--density", type=_density, nargs="+", help="densities to bring every pattern to, 0.01 to 1")
    attention.add_argument("--top-p", type=_mass, default=0.9, help="without --density: mass to keep (default 0.9)")
    attention.add_argument("--max-density", type=_density, default=1.0, help="without --density: most keys (default 1)")
    _add_precision_option(attention)
    attention.add_argument("--no-baselines", action="store_true", help="leave out other people's attention")
    _add_row_options(attention)
    attention.set_defaults(run=_bench_attention)

    planning = subjects.add_parser("planning", help="what every step of planning takes, beside dense attention")
    add_input_options(planning, _positive, _grid)
    planning.add_argument("--pattern", nargs="+", default=None, help="patterns (default: all)")
    planning.add_argument("--density", type=_density, nargs="+", default=[0.3], help="0.01 to 1 (default 0.3)")
    _add_row_options(planning)
    planning.set_defaults(run=_bench_planning)

    linear = subjects.add_parser("linear", help="a layer with 4-bit weights on every path, beside the plain one")
    linear.add_argument("--size", type=_size, nargs="+", metavar="NxK", help="output by input channels of the layers")
    linear.add_argument("--tokens", type=_positive, help="rows of the input (default 32760 on a GPU, else 64)")
    _add_row_options(linear)
    linear.set_defaults(run=_bench_linear)

    forward = subjects.add_parser("forward", help="a block and a whole forward of Wan's shape, dense and sparse")
    forward.add_argument("--layers", type=_positive, nargs="+", help="of each model (default 1 40; off a GPU 1 2)")
    forward.add_argument(
        "--grid", type=_grid, nargs="+", metavar="TxHxW", help="tokens (default 21x45x80; off a GPU 4x8x10)"
    )
    forward.add_argument("--dim", type=_positive, help="channels of a token (default 5120; off a GPU 256)")
    forward.add_argument("--heads", type=_positive, help="(default 40; off a GPU 2)")
    forward.add_argument("--pattern", nargs="+", default=["svg2"], help="patterns (default svg2)")
    forward.add_argument("--density", type=_density, nargs="+", default=[0.25], help="0.01 to 1 (default 0.25)")
    forward.add_argument("--top-p", type=_mass, help="instead of --density: mass to keep, 0.05 to 1")
    forward.add_argument("--max-density", type=_density, default=1.0, help="with --top-p: most keys (default 1)")
    _add_precision_option(forward)
    _add_row_options(forward)
    forward.set_defaults(run=_bench_forward)

    dcae = subjects.add_parser("dcae", help="an image autoencoder at once and in strips, beside diffusers'")
    dcae.add_argument("--variant", default="f32c32-sana-1.0", help="its make-up (default f32c32-sana-1.0)")
    dcae.add_argument(
        "--pixels", type=_positive, nargs="+", help="sides of the pictures (default 1024 2048 4096; off a GPU 512 1024)"
    )
    dcae.add_argument("--rows", type=_positive, default=8, help="latent rows in a strip (default 8)")
    _add_row_options(dcae)
    dcae.set_defaults(run=_bench_dcae)

    show = subjects.add_parser("show", help="prints the tables of files that other benches of speed wrote")
    show.add_argument("files", type=Path, nargs="+")
    show.set_defaults(run=_bench_show)

    bars = subjects.add_parser("bars", help="holds such files against the bars of speed on an H200")
    bars.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    bars.add_argument("--json", type=Path, help="write every bar, what was measured and the machine here")
    bars.set_defaults(run=_bench_bars)

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

    gate = subjects.add_parser("gate", help="measures this card for the gate: which calls stay dense")
    gate.add_argument("--repeats", type=_positive, default=10, help="timed runs; the median counts (default 10)")
    gate.add_argument("--json", type=Path, help="the file to write (default: in ComfyUI's models/dit_accel/gate)")
    gate.set_defaults(run=_bench_gate)
    return parser


def _add_clip_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--frames", type=_positive, default=33, help="frames to make (default 33)")
    command.add_argument("--width", type=_positive, default=320, help="picture width in pixels (default 320)")
    command.add_argument("--steps", type=_positive, default=12, help="sampling steps, at least 2 (default 12)")
    command.add_argument("--pattern", nargs="+", help="patterns (default: all)")


def _add_precision_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--precision", nargs="+", choices=("16-bit", "8-bit"), default=["16-bit"], help="8-bit: as the chip can"
    )


def _add_row_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--repeats", type=_positive, help="runs in each of the two medians (default 20 on a GPU, else 3)"
    )
    command.add_argument("--json", type=Path, help="written after every row, with the inputs' hashes and the machine")
    command.add_argument("--resume", action="store_true", help="keep the rows that --json has, and measure the others")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {value}")
    return value


def _grid(text: str) -> tuple[int, int, int]:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected frames x height x width in tokens such as 21x45x80, found {text}")
    return tuple(map(int, sizes))


def _size(text: str) -> tuple[int, int]:
    sizes = text.split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and int(size) for size in sizes) or int(sizes[1]) % 64:
        raise argparse.ArgumentTypeError(f"expected output x input channels such as 5120x13824, found {text}")
    return tuple(map(int, sizes))


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


def _convert(options: argparse.Namespace) -> int:
    from .convert import run

    return run(options)


def _fit_preview(options: argparse.Namespace) -> int:
    from .fit_preview import run

    return run(options)


def _bench_attention(options: argparse.Namespace) -> int:
    from .bench import run

    return run(options)


def _bench_planning(options: argparse.Namespace) -> int:
    from .bench_planning import run

    return run(options)


def _bench_linear(options: argparse.Namespace) -> int:
    from .bench_linear import run

    return run(options)


def _bench_forward(options: argparse.Namespace) -> int:
    from .bench_forward import run

    return run(options)


def _bench_dcae(options: argparse.Namespace) -> int:
    from .bench_dcae import run

    return run(options)


def _bench_show(options: argparse.Namespace) -> int:
    from .bench_show import run

    return run(options)


def _bench_bars(options: argparse.Namespace) -> int:
    from .bench_bars import run

    return run(options)


def _bench_video(options: argparse.Namespace) -> int:
    from .bench_video import run

    return run(options)


def _bench_gate(options: argparse.Namespace) -> int:
    from .bench_gate import run

    return run(options)


def _bench_quality(options: argparse.Namespace) -> int:
    from .bench_quality import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
