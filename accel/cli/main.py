"""`dit-accel`: the entry point. A command's module is imported when it runs, so that --help is instant."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from . import Problem
from .arguments import add_attention_options, add_clip_options, mass, positive
from .bench_inputs import add_input_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line `arguments` (default: the process's) and returns its exit status."""
    return run_command("dit-accel", _parser(), arguments, __package__)


def run_command(
    program: str, parser: argparse.ArgumentParser, arguments: Sequence[str] | None, package: str | None
) -> int:
    """Runs the module of `package` that the chosen command names with set_defaults(module=...); returns the exit
    status. A Problem becomes one line on standard error, under the name of the program."""
    options = parser.parse_args(arguments)
    try:
        return importlib.import_module(f".{options.module}", package).run(options)
    except Problem as problem:
        print(f"{program}: {problem}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dit-accel", description="Sparse attention for video diffusion transformers in ComfyUI."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    doctor = commands.add_parser(
        "doctor",
        help="what was found here, and what runs on it",
        description="Says what was found here, compiles every kernel once for each kind of GPU, and says which "
        "operation runs where, why not, and what to do next.",
        epilog="Exit status: 0 where everything runs, 1 where something does not, which the verdict names.",
    )
    doctor.set_defaults(module="doctor")

    demo = commands.add_parser("demo", help="one graph in a headless ComfyUI, dense and with every pattern")
    demo.add_argument("--output", type=Path, default=Path("dit-accel-demo"), help="folder for the results")
    demo.add_argument("--prompt", default="bunny", help="a prompt that the bundled model knows (default bunny)")
    add_clip_options(demo)
    demo.add_argument("--top-p", type=mass, default=0.9, help="attention mass to keep, 0.05 to 1 (default 0.9)")
    demo.set_defaults(module="demo")

    convert = commands.add_parser("convert", help="a 4-bit model as one file in ComfyUI's convention")
    convert.add_argument("source", type=Path, metavar="SOURCE", help="a nunchaku or comfy_quant file, or a folder")
    convert.add_argument("target", type=Path, metavar="TARGET", help="the safetensors file to write")
    convert.set_defaults(module="convert")

    preview = commands.add_parser("fit-preview", help="factors to preview latents of a DC-AE; no model reads them yet")
    preview.add_argument("--vae", type=Path, required=True, help="the DC-AE, a file in MIT's or diffusers' format")
    preview.add_argument("--variant", default="auto", help="which DC-AE it is (default auto: as its file says)")
    preview.add_argument("--pictures", type=Path, required=True, help="a folder of pictures, a hundred or more")
    preview.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    preview.set_defaults(module="fit_preview")

    bench = commands.add_parser("bench", help="tables of times and errors on this machine")
    subjects = bench.add_subparsers(required=True, metavar="subject")
    attention = subjects.add_parser("attention", help="sparse attention beside dense attention")
    add_input_options(attention)
    add_attention_options(attention)
    attention.set_defaults(module="bench_attention")

    gate = subjects.add_parser("gate", help="measures this card for the gate: which calls stay dense")
    gate.add_argument("--repeats", type=positive, default=10, help="timed runs; the median counts (default 10)")
    gate.add_argument("--json", type=Path, help="the file to write (default: in ComfyUI's models/dit_accel/gate)")
    gate.set_defaults(module="bench_gate")
    return parser


if __name__ == "__main__":
    sys.exit(main())
