"""A bar, what was measured for it, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
Tables = Mapping[str, Sequence[Row]]

DEVICE = "H200"
MET, MISSED, OPEN = "met", "not met", "open"


class Open(Exception):  # noqa: N818
    """Why there is no number for a bar: what is missing, as its row says it."""


class Measured(NamedTuple):
    """value: what the bar is about, the worst of what it stands for; on: what that was measured on, in words; machine:
    as the rows name it.

    unfit: why the conditions were not the bar's, whatever the number is. missing: what was not measured and could only
    make the number worse: a bar that is missed without it is missed, one that is met stays open.
    """

    value: float
    on: str
    machine: str
    unfit: str = ""
    missing: str = ""


class Bar(NamedTuple):
    """name: what it is about; measure: gives the number, or raises Open; form: writes such a number. least, most: what
    it has to reach or may not exceed; without either the bar is that there is a number."""

    name: str
    measure: Callable[[Tables], Measured]
    form: Callable[[float], str]
    least: float | None = None
    most: float | None = None

    @property
    def text(self) -> str:
        if self.least is not None:
            return f">= {self.form(self.least)}"
        return "reported" if self.most is None else f"<= {self.form(self.most)}"

    def reached(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def judged(bar: Bar, tables: Tables) -> Row:
    """A row: what, bar, measured, verdict, why it is open, on what it was measured, the machine."""
    row = {"what": bar.name, "bar": bar.text, "value": None, "measured": "", "on": "", "machine": None}
    try:
        measured = bar.measure(tables)
    except Open as reason:
        return row | {"verdict": OPEN, "why": str(reason)}
    value = measured.value
    row |= {"value": value, "measured": bar.form(value), "on": measured.on, "machine": measured.machine}
    device = measured.machine.partition(";")[0]
    unfit = f"measured on {device}" if DEVICE not in device else measured.unfit
    if unfit:
        return row | {"verdict": OPEN, "why": unfit}
    if not bar.reached(value):
        return row | {"verdict": MISSED, "why": ""}
    return row | {"verdict": OPEN if measured.missing else MET, "why": measured.missing}


def percent(value: float) -> str:
    return f"{value:.1%}"


def times(value: float) -> str:
    return f"{value:.2f}x"


def joined(*reasons: str) -> str:
    """Those that are not empty."""
    return "; ".join(dict.fromkeys(filter(None, reasons)))
