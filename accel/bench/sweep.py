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


class Target(NamedTuple):
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
    sparse: Mapping[str, Callable[[Case, Target], Row]]
    planned: Mapping[str, Callable[[Planned, Target, str], Row]]


NO_PEERS = Peers({}, {}, {})


def rows_of(
    case: Case,
    patterns: Sequence[str],
    targets: Sequence[Target],
    formats: Sequence[Formats | None],
    *,
    peers: Peers = NO_PEERS,
    done: Callable[..., bool],
) -> Iterator[Row]:
    """The rows of `case` one by one. done(**fields) says that there is a row with such fields, which is left out."""
    for name, measure_dense in peers.dense.items():
        if not done(pattern=name):
            yield measure_dense(case)
    for target in targets:
        for name, measure_sparse in peers.sparse.items():
            if not done(pattern=name, asked=target.words):
                yield measure_sparse(case, target)
        for pattern in patterns:
            yield from _rows_of_pattern(case, pattern, target, formats, peers, partial(done, asked=target.words))


def _rows_of_pattern(
    case: Case, pattern: str, target: Target, formats: Sequence[Formats | None], peers: Peers, done: Callable[..., bool]
) -> Iterator[Row]:
    missing = [choice for choice in formats if not done(pattern=pattern, formats=format_name(case, choice))]
    names = {f"{name} as {pattern}": measure_planned for name, measure_planned in peers.planned.items()}
    peers_missing = {name: measure_planned for name, measure_planned in names.items() if not done(pattern=name)}
    if done(pattern=pattern, formats=None) or not (missing or peers_missing):
        return
    row = {**case.about(), "pattern": pattern, "formats": None, "asked": target.words, "asked_density": target.density}
    try:
        planned = _plan(case, pattern, target)
    except Exception as error:
        yield row | _failure(error)
        return
    if planned is None:
        yield row | {"valid": False, "remark": "skipped: the pattern cannot give that density here"}
        return
    for choice in missing:
        try:
            yield measure(planned, choice)
        # One kernel that cannot be compiled or run must not cost the rows after it; the table shows it.
        except Exception as error:
            yield row | {"formats": format_name(case, choice)} | _failure(error)
    for name, measure_planned in peers_missing.items():
        yield measure_planned(planned, target, name)


def _plan(case: Case, pattern: str, target: Target) -> Planned | None:
    budget = target.budget
    if target.density is not None:
        choice = budget_at(lambda: Planner(case, pattern, budget).call, pattern, target.density)
        if choice is None:
            return None
        budget, _ = choice
    return plan_timed(case, pattern, budget, target.words, target.density)


def _failure(error: Exception) -> Row:
    return {"valid": False, "failed": True, "remark": f"failed: {type(error).__name__}: {error}"}
