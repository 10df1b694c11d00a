"""`capture`: q, k and v of a trained model on real frames, in a file for the bench and for tests."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from dit_accel.accel.cli import Problem
from dit_accel.accel.cli.demo_graph import MODEL, PROMPT, VAE
from dit_accel.accel.cli.needs import need_clip, need_comfyui_folder, need_prompt, need_writable_file, needed_by
from dit_accel.accel.comfy.folders import BUNDLED, FOLDER

# In place of a clip's file: needs no video and nothing to read one.
DRAWN = Path("drawn")


def bundled(prompt: str) -> dict[str, Path]:
    """The files of the model that comes along. Raises Problem unless it knows the prompt."""
    need_prompt(prompt)
    return {
        "model": BUNDLED / "diffusion_models" / MODEL,
        "vae": BUNDLED / "vae" / VAE,
        "conditioning": BUNDLED / FOLDER / PROMPT.format(prompt),
    }


def run(options: argparse.Namespace) -> int:
    """Writes options.output and prints what is in it. Raises Problem when something is missing or does not fit."""
    need_writable_file("--output", options.output)
    files = bundled(options.prompt)
    given = {name for name in files if getattr(options, name)}
    if given and given != set(files):
        # Another model's latents and prompts would be nonsense to it, without any error.
        raise Problem(f"--{min(set(files) - given)}: expected with --{min(given)}, since they belong together")
    files |= {name: getattr(options, name) for name in given}
    drawn = options.clip == DRAWN
    if not drawn:
        files["clip"] = options.clip or need_clip()
    for name, path in files.items():
        if not path.is_file():
            raise Problem(f"--{name}: expected a file, found none at {path}")
    comfyui = need_comfyui_folder()
    settings = {name: getattr(options, name) for name in ("grid", "blocks", "heads", "sigmas")}
    with needed_by(comfyui):
        from dit_accel.accel.bench import captures
        from dit_accel.accel.headless.embedded import device_arguments
        from dit_accel.tests.bench import capture_run

        try:
            calls = capture_run.capture(comfyui, files, **settings)
        except (ValueError, RuntimeError) as error:
            raise Problem(str(error)) from error
    provenance = {name: _identity(path) for name, path in files.items()}
    if drawn:
        provenance["clip"] = {"file": f"{DRAWN}"}
    captures.write(
        options.output, calls, {**provenance, **settings, "seed": capture_run.SEED, "comfyui": device_arguments()}
    )
    print(f"\n{capture_run.show(calls)}\n")
    print(f"{options.output}: {len(calls)} calls of {calls[0].layout.video} video tokens, {tuple(calls[0].q.shape)}")
    return 0


def _identity(path: Path) -> dict[str, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return {"file": path.name, "sha256": digest.hexdigest()}
