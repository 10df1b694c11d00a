"""The JSON file of a bench: whole after every row, so that a run that is killed keeps what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import parse_json, replacing
from . import Problem

VERSION = 2


class Rows:
    """Rows of one bench, in a file if `path` is given. Each gets the field `machine`, in words.

    resume: rows that the file has are kept, those aside that failed. Raises Problem naming the option --resume where
    the file is not one of this `kind` and version.
    """

    def __init__(self, path: Path | None, kind: str, machine: dict[str, Any], *, resume: bool) -> None:
        self._path = path
        self._head = {"format": kind, "version": VERSION, "machine": machine}
        self._machine = machine_words(machine)
        self.rows: list[dict[str, Any]] = []
        if resume and path is not None and path.exists():
            self.rows = [row for row in read(path, "--resume", kind)["rows"] if not row.get("failed")]

    def of(self, about: dict[str, Any]) -> Callable[..., bool]:
        """done(**fields): whether there is a row of this machine with these fields, and those of `about`."""

        def done(**fields: Any) -> bool:
            wanted = {**about, **fields, "machine": self._machine}
            return any(all(name in row and row[name] == value for name, value in wanted.items()) for row in self.rows)

        return done

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({**row, "machine": self._machine})
        if self._path is not None:
            with replacing(self._path) as partial:
                partial.write_text(json.dumps({**self._head, "rows": self.rows}, indent=1) + "\n", "utf-8")


def machine_words(machine: dict[str, Any]) -> str:
    """What must be equal for two rows to be of one table."""
    return f"{machine['device']}; torch {machine['torch']}; dit-accel {machine['pack']}"


def read(path: Path, option: str, *kinds: str) -> dict[str, Any]:
    """A file that `Rows` wrote. Raises Problem naming `option` and the file where it is none of `kinds`."""
    expected = f"{option}: {path}: expected rows of {' or '.join(kinds)}, version {VERSION}"
    try:
        report = parse_json(path.read_text("utf-8"))
        actual = f"{report['format']}, version {report['version']}"
        known = report["format"] in kinds and report["version"] == VERSION and isinstance(report["rows"], list)
    except OSError as error:
        raise Problem(f"{expected}, found no readable file ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(f"{expected}, found something else ({error!r})") from error
    if not known:
        raise Problem(f"{expected}, found {actual}")
    return report
