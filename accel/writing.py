"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, which lets nobody delete a file that is open.
    fcntl = None  # type: ignore[assignment]

# .<name>.<process>.partial
_PARTIAL = re.compile(r"\..+\.\d+\.partial")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; it becomes `path`, on the disk, when the block ends well and vanishes when it
    does not. What a process left in the folder that was killed within the block is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("ab") as held:
            _lock(held)
            yield partial
        # Opened anew: a writer may have put another file in the place of the one that is held.
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    for partial in folder.glob(".*.partial"):
        if _PARTIAL.fullmatch(partial.name):
            # Held by the process that writes it, gone, or of a file system without locks.
            with contextlib.suppress(OSError):
                if fcntl is not None:
                    with partial.open("rb") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink()


def _lock(file: BinaryIO) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # A file system without locks.
            fcntl.flock(file, fcntl.LOCK_EX)
