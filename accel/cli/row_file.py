"""The JSON file of a bench: whole after every row, so that a run that is killed keeps what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import load_json
from ..messages import short
from ..writing import replacing
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
    """A file that `Rows` wrote; what the fields of its rows hold is not checked. Raises Problem naming `option` and the
    file where it is none of `kinds` or has no rows."""
    what = f"rows of {' or '.join(kinds)}, version {VERSION}"
    try:
        report = load_json(path, what)
    except ValueError as error:
        raise Problem(f"{option}: {error}") from error
    expected = f"{option}: {path}: expected {what}"
    actual = (report.get("format"), report.get("version")) if isinstance(report, dict) else report
    if not isinstance(actual, tuple) or actual[0] not in kinds or actual[1] != VERSION:
        raise Problem(f"{expected}, found {short(actual)}")
    if not isinstance(report.get("machine"), dict) or not isinstance(report.get("rows"), list):
        raise Problem(f"{expected}, found no machine or no rows")
    for row in report["rows"]:
        if not isinstance(row, dict) or not isinstance(row.get("machine"), str):
            raise Problem(f"{expected}, each with its machine, found {short(row)}")
    return report


def shown(show: Callable[[list[dict[str, Any]]], str], rows: list[dict[str, Any]], where: str) -> str:
    """What `show` makes of rows that `read` gave. Raises Problem naming `where`, the option and the file, when fields
    are missing or of another kind than the bench writes."""
    try:
        return show(rows)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Problem(f"{where}: expected the fields that the bench writes, found others ({error!r})") from error
