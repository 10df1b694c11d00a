"""Where the pack keeps files of its own kinds, and the small model that comes with it."""

from __future__ import annotations

import os
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
    folder_paths.folder_names_and_paths[FOLDER][1].update((".safetensors", ".json"))
    for folder in (FOLDER, "diffusion_models", "vae"):
        folder_paths.add_model_folder_path(folder, str(BUNDLED / folder))


def own_folder() -> Path:
    """Where the pack's nodes write: models/dit_accel, unless extra_model_paths names another folder for dit_accel."""
    import folder_paths

    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def own_files(suffix: str) -> list[str]:
    """Names, as loading nodes list them, of the files in models/dit_accel of that kind (`.json`: profiles)."""
    import folder_paths

    names = folder_paths.get_filename_list(FOLDER)
    return [name for name in names if name.endswith(suffix) and Path(name).parts[0].casefold() != GATE]


def new_file(prefix: str, suffix: str) -> tuple[Path, str]:
    """Path of a file to write in models/dit_accel, and its name as loading nodes list it. prefix: the start of its
    name, with folders; a number is added. Raises ValueError naming filename_prefix where no such file can be."""
    import folder_paths

    from .filename_prefix import checked

    # What lies in the gate's folder is taken for its measurements.
    start = checked(prefix, GATE)
    try:
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(start, str(own_folder()))
    except Exception as error:  # Core refuses a link out of the folder with a bare Exception.
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"filename_prefix: expected a folder that can be written to, found {prefix!r} ({reason})"
        ) from error
    name = f"{stem}_{counter:05}_{suffix}"
    return Path(folder, name), os.path.join(subfolder, name)


def version_of(name: str | None) -> tuple[int, int] | None:
    """What changes when the file of that name does; None where there is none. A name that comes through a link is
    None too."""
    import folder_paths

    path = name and folder_paths.get_full_path(FOLDER, name)
    if path is None:
        return None
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


def gate_files() -> list[Path]:
    """What `dit-accel bench gate` left in models/dit_accel/gate, or in other folders that ComfyUI knows for
    dit_accel; nothing where it knows none."""
    import folder_paths

    folders = folder_paths.folder_names_and_paths.get(FOLDER, ([],))[0]
    return [file for folder in folders for file in sorted(Path(folder, GATE).glob("*.json"))]
