"""Files of measured costs: one JSON for a card and the software that it was measured with."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...files import read_json, write_json
from ...messages import short
from .costs import Terms

FORMAT, VERSION = "dit-accel/gate", 1

log = logging.getLogger("dit_accel")


class Fit(NamedTuple):
    """card: its name as torch gives it; software: version by name, `torch` and `triton`; costs: milliseconds of one
    unit of each; path: the file."""

    card: str
    software: dict[str, str]
    costs: Terms
    path: Path


def software() -> dict[str, str]:
    """What runs here. Needs triton."""
    import triton

    return {"torch": torch.__version__, "triton": triton.__version__}


def write_fit(fit: Fit, points: list[dict[str, Any]]) -> None:
    """Writes fit.path. points: what was measured, for a person to read."""
    content = {"card": fit.card, "software": fit.software, "costs": fit.costs._asdict(), "points": points}
    write_json(fit.path, FORMAT, VERSION, content)


def read_fit(path: Path) -> Fit:
    """Reads what `write_fit` wrote. Raises ValueError naming the file, what was expected and what was found."""
    content = read_json(path, FORMAT, VERSION)
    card, versions, costs = (content.get(name) for name in ("card", "software", "costs"))
    if not isinstance(card, str):
        raise ValueError(f"{path}: card: expected a card's name, found {short(card)}")
    if (
        not isinstance(versions, dict)
        or versions.keys() != {"torch", "triton"}
        or not all(isinstance(version, str) for version in versions.values())
    ):
        raise ValueError(f"{path}: software: expected versions of torch and triton, found {short(versions)}")
    if not isinstance(costs, dict) or costs.keys() != set(Terms._fields) or not all(map(_is_cost, costs.values())):
        raise ValueError(
            f"{path}: costs: expected milliseconds, 0 or more, for each of {', '.join(Terms._fields)}, "
            f"found {short(costs)}"
        )
    if not costs["dense"]:
        raise ValueError(f"{path}: costs: expected a dense cost above 0, found 0")
    return Fit(card, versions, Terms(**costs), path)


def read_fits(paths: Iterable[Path]) -> list[Fit]:
    """All that can be read; each bad file is named in one warning."""
    fits = []
    for path in paths:
        try:
            fits.append(read_fit(path))
        except ValueError as error:
            # A file's name may be of bytes that no log takes.
            text = str(error).encode(errors="backslashreplace").decode()
            log.warning("DiT Accel: this measurement of the gate is ignored. %s", text)
    return fits


def _is_cost(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
