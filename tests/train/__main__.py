"""`python -m dit_accel.tests.train`: see README.md beside this file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from dit_accel.tests.train import clips, dit, evaluate, export, latents, vae

VAE_STEPS = 2000
DIT_STEPS = 12600


def main() -> None:
    # What comes before the first step counts too.
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m dit_accel.tests.train")
    parser.add_argument("stage", choices=("clips", "vae", "latents", "dit", "export", "evaluate"))
    parser.add_argument("--folder", type=Path, required=True, help="clips, latents and checkpoints are kept here")
    parser.add_argument("--minutes", type=float, default=8.5, help="stop after this time; call again to go on")
    parser.add_argument("--steps", type=int, help="steps of the whole training (default: as shipped)")
    options = parser.parse_args()
    deadline = start + 60 * options.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("done" if run(options, device, deadline) else "call again to go on", flush=True)


def run(options: argparse.Namespace, device: torch.device, deadline: float) -> bool:
    """One stage, or as much of it as there is time for; True when it is complete."""
    folder = options.folder
    if options.stage == "vae":
        done = vae.train(folder, device, options.steps or VAE_STEPS, deadline)
        if done:
            export.vae(folder)
        return done
    if options.stage == "latents":
        return latents.write(folder, device, export.exported_vae(), deadline)
    if options.stage == "dit":
        return dit.train(folder, device, options.steps or DIT_STEPS, deadline)
    if options.stage == "clips":
        clips.fetch(folder / "clips")
    elif options.stage == "export":
        export.dit(folder)
    else:
        evaluate.write(folder, device)
    return True


if __name__ == "__main__":
    main()
