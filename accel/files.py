"""Files: the pack's own, safetensors and JSON, written whole or not at all and checked before they are used; and
anybody's safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .version import PACK_VERSION


def mapped(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of anybody's safetensors file, mapped into memory, and its metadata. Raises ValueError saying what
    was expected and what was found when it is none; the caller names the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        with path.open("rb") as file:
            start = file.read(2)
        # torch.save writes a zip archive, and older versions a bare pickle.
        pickled = start == b"PK" or start[:1] == b"\x80"
        kind = "a pickle" if pickled else "a broken one"
        raise ValueError(f"expected a safetensors file, found {kind} ({error})") from error


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
    actual = metadata.get("format")
    if actual != kind:
        description = f"the format {actual}" if actual else "a safetensors file of another kind"
        raise ValueError(f"{path}: expected a file of the format {kind}, found {description}")
    if metadata.get("version") != str(version):
        raise ValueError(f"{path}: expected version {version} of {kind}, found version {metadata.get('version')}")
    return tensors, metadata


def write_json(path: Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
    """Writes the content with the format `kind`, its version and the pack's version."""
    about = {"format": kind, "version": version, "pack": PACK_VERSION}
    with replacing(path) as partial:
        partial.write_text(json.dumps({**about, **content}, indent=2, allow_nan=False) + "\n", "utf-8")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError for any other text."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too many brackets within brackets") from error


def read_json(path: Path, kind: str, version: int) -> dict[str, Any]:
    """What `write_json` wrote. Raises ValueError naming the file, what was expected and what was found, when it is of
    another format or version or no JSON; the content is not checked."""
    try:
        content = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON file of the format {kind}, found {error}") from error
    actual = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if actual != (kind, version):
        raise ValueError(f"{path}: expected the format {kind}, version {version}, found {actual}")
    return content
