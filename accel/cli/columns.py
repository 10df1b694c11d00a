"""Tables of a bench's rows: a column is a field and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .table import table


class Column(NamedTuple):
    """header, and the text of a row's cell: that of the field, empty for a row without it."""

    header: str
    field: str
    form: Callable[[Any], str] = str

    def text(self, row: dict[str, Any]) -> str:
        value = row.get(self.field)
        return "" if value is None else self.form(value)


def milliseconds(value: float) -> str:
    return f"{value:.2f}"


def columns_of(columns: Iterable[Column], rows: list[dict[str, Any]]) -> str:
    """The rows under the columns that at least one of them fills."""
    used = [column for column in columns if any(column.text(row) for row in rows)]
    return table([column.header for column in used], [[column.text(row) for column in used] for row in rows])
