"""The rows of a case: every pattern at every density and in every format, and other people's attention beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ...kernels.quantise import Formats
from ..attention.budget import Budget
from .case import Case
from .density import budget_at
from .pattern_row import Planned, Planner, format_name, measure, plan_timed

Row = dict[str, Any]


class Ask(NamedTuple):
    """What a row is to keep: a density, or else what a budget says."""

    density: float | None
    budget: Budget

    @property
    def words(self) -> str:
        if self.density is not None:
            return f"density {self.density}"
        return f"top_p {self.budget.top_p}, max_density {self.budget.max_density}"


class Peers(NamedTuple):
    """Other people's attention, each by the name of its rows; a function makes one row, which may say why there are no
    numbers. dense: of everything. sparse: at what is asked for, by its own rule. planned: with the blocks of our plan,
    under the name `<name> as <pattern>`."""

    dense: Mapping[str, Callable[[Case], Row]]
    sparse: Mapping[str, Callable[[Case, Ask], Row]]
    planned: Mapping[str, Callable[[Planned, Ask, str], Row]]


NO_PEERS = Peers({}, {}, {})


def rows_of(
    case: Case,
    patterns: Sequence[str],
    asks: Sequence[Ask],
    formats: Sequence[Formats | None],
    *,
    peers: Peers = NO_PEERS,
    done: Callable[..., bool],
) -> Iterator[Row]:
    """The rows of `case` one by one. done(**fields) says that there is a row with such fields, which is left out."""
    for name, measure_dense in peers.dense.items():
        if not done(pattern=name):
            yield measure_dense(case)
    for ask in asks:
        for name, measure_sparse in peers.sparse.items():
            if not done(pattern=name, asked=ask.words):
                yield measure_sparse(case, ask)
        for pattern in patterns:
            yield from _rows_of_pattern(case, pattern, ask, formats, peers, partial(done, asked=ask.words))


def _rows_of_pattern(
    case: Case, pattern: str, ask: Ask, formats: Sequence[Formats | None], peers: Peers, done: Callable[..., bool]
) -> Iterator[Row]:
    missing = [one for one in formats if not done(pattern=pattern, formats=format_name(case, one))]
    names = {f"{name} as {pattern}": measure_planned for name, measure_planned in peers.planned.items()}
    peers_missing = {name: measure_planned for name, measure_planned in names.items() if not done(pattern=name)}
    if done(pattern=pattern, formats=None) or not (missing or peers_missing):
        return
    row = {**case.about(), "pattern": pattern, "formats": None, "asked": ask.words, "asked_density": ask.density}
    try:
        planned = _plan(case, pattern, ask)
    except Exception as error:
        yield row | _failure(error)
        return
    if planned is None:
        yield row | {"valid": False, "remark": "skipped: the pattern cannot give that density here"}
        return
    for one in missing:
        try:
            yield measure(planned, one)
        # One kernel that cannot be compiled or run must not cost the rows after it; the table shows it.
        except Exception as error:
            yield row | {"formats": format_name(case, one)} | _failure(error)
    for name, measure_planned in peers_missing.items():
        yield measure_planned(planned, ask, name)


def _plan(case: Case, pattern: str, ask: Ask) -> Planned | None:
    budget = ask.budget
    if ask.density is not None:
        choice = budget_at(lambda: Planner(case, pattern, budget).call, pattern, ask.density)
        if choice is None:
            return None
        budget, _ = choice
    return plan_timed(case, pattern, budget, ask.words, ask.density)


def _failure(error: Exception) -> Row:
    return {"valid": False, "failed": True, "remark": f"failed: {type(error).__name__}: {error}"}
