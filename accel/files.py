"""The pack's own safetensors files: written whole or not at all, checked before they are used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .version import PACK_VERSION


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; it becomes `path` when the block ends well and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, tensors: Mapping[str, Tensor], kind: str, version: int, **metadata: str) -> None:
    """Writes the tensors with the format `kind`, its version, the pack's version and `metadata`."""
    about = {"format": kind, "version": str(version), "pack": PACK_VERSION, **metadata}
    with replacing(path) as partial:
        # Not save_file: that makes a file which only its owner may read.
        partial.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=about))


def read(path: Path, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, in memory of their own, and the metadata of a file that `write` wrote.

    Raises ValueError naming the file, what was expected and what was found, when it is of another format or version
    or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if metadata.get("format") == kind else []
            # A copy: else the file stays mapped, and whoever changes it changes the tensors.
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a file of the format {kind}, found a broken one ({error})") from error
    found = metadata.get("format")
    if found != kind:
        what = f"the format {found}" if found else "a safetensors file of another kind"
        raise ValueError(f"{path}: expected a file of the format {kind}, found {what}")
    if metadata.get("version") != str(version):
        raise ValueError(f"{path}: expected version {version} of {kind}, found version {metadata.get('version')}")
    return tensors, metadata
