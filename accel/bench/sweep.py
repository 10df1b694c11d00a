"""The rows of a case: every pattern at every density and in every format, and the baselines beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from ...kernels.quantise import Formats
from ..attention.budget import Budget
from .attention import Planned, Planner, format_name, measure, plan_timed
from .baselines import DENSE, flex_attention, measure_baseline, sol_attn
from .case import Case
from .density import budget_at

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


def rows_of(
    case: Case,
    patterns: Sequence[str],
    asks: Sequence[Ask],
    formats: Sequence[Formats | None],
    *,
    baselines: bool,
    done: Callable[..., bool],
) -> Iterator[Row]:
    """The rows of `case` one by one. done(**fields) says that there is a row with such fields, which is left out."""
    if baselines:
        for name, make in DENSE.items():
            if not done(pattern=name):
                yield measure_baseline(case, name, partial(make, case))
    for ask in asks:
        if baselines and not done(pattern="sol_attn", asked=ask.words):
            ready = partial(sol_attn, case, ask.density)
            yield measure_baseline(case, "sol_attn", ready, ask.words, ask.density)
        for pattern in patterns:
            yield from _rows_of_pattern(case, pattern, ask, formats, baselines, partial(done, asked=ask.words))


def _rows_of_pattern(
    case: Case,
    pattern: str,
    ask: Ask,
    formats: Sequence[Formats | None],
    baselines: bool,
    done: Callable[..., bool],
) -> Iterator[Row]:
    missing = [one for one in formats if not done(pattern=pattern, formats=format_name(case, one))]
    flex = f"flex_attention as {pattern}"
    flex_missing = baselines and not done(pattern=flex)
    if done(pattern=pattern, formats=None) or not (missing or flex_missing):
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
    if flex_missing:
        yield measure_baseline(case, flex, partial(flex_attention, planned), ask.words, ask.density)


def _plan(case: Case, pattern: str, ask: Ask) -> Planned | None:
    budget = ask.budget
    if ask.density is not None:
        found = budget_at(lambda: Planner(case, pattern, budget).call, pattern, ask.density)
        if found is None:
            return None
        budget = found[0]
    return plan_timed(case, pattern, budget, ask.words, ask.density)


def _failure(error: Exception) -> Row:
    return {"valid": False, "failed": True, "remark": f"failed: {type(error).__name__}: {error}"}
