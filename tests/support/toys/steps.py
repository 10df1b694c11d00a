"""A step of a recipe: one file written or edited."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """file: its path in the tree. edit: its text afterwards, from the text before and the tree; None is the text of a
    file that is not there."""

    file: str
    edit: Callable[[str | None, Path], str]


def new(file: str, text: str) -> Step:
    """A file that is written."""

    def edit(before: str | None, tree: Path) -> str:
        assert before is None, f"{file} is there already"
        return text

    return Step(file, edit)


def change(file: str, *replaced: tuple[str, str]) -> Step:
    """A file in which each pattern, which it must hold once, is replaced."""

    def edit(before: str | None, tree: Path) -> str:
        text = before
        for pattern, replacement in replaced:
            text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
            assert count == 1, f"{file} holds {pattern!r} {count} times: bring this step up to date"
        return text

    return Step(file, edit)


def at_the_end(opening: str, closing: str, lines: str) -> tuple[str, str]:
    """For `change`: lines appended to a list or table, from the line that opens it to the one that closes it."""
    return rf"^({re.escape(opening)}$(?:\n(?!{re.escape(closing)}$).*)*\n)(?={re.escape(closing)}$)", rf"\g<1>{lines}"
