"""Where the pack keeps files of its own kinds, and the small model that comes with it."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parents[2] / "workflows" / "models"
FOLDER = "dit_accel"
GATE = "gate"  # the folder in it for what `dit-accel bench gate` measured


def register() -> None:
    """Adds models/dit_accel to ComfyUI's model folders, and the bundled model to its lists.

    May be called again: a folder is listed once.
    """
    import folder_paths

    # extra_model_paths may have named folders already; the first is the one to write to.
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir, FOLDER)))
    folder_paths.folder_names_and_paths[FOLDER][1].add(".safetensors")
    for folder in (FOLDER, "diffusion_models", "vae"):
        folder_paths.add_model_folder_path(folder, str(BUNDLED / folder))


def own_folder() -> Path:
    """Where the pack's nodes write: models/dit_accel, unless extra_model_paths names another folder for dit_accel."""
    import folder_paths

    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def gate_files() -> list[Path]:
    """What `dit-accel bench gate` left in models/dit_accel/gate, or in other folders that ComfyUI knows for
    dit_accel; nothing where it knows none."""
    import folder_paths

    folders = folder_paths.folder_names_and_paths.get(FOLDER, ([],))[0]
    return [file for folder in folders for file in sorted(Path(folder, GATE).glob("*.json"))]
