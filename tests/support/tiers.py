"""Which tests of a large product of parameters the fast tier runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations


def spread(rows: Sequence[tuple], strength: int) -> list[int]:
    """Places of a few `rows`, columns being parameters: each value of each column is in one of them, or with strength
    2 each pair of values of two columns that is in any. A greedy choice that depends on nothing else."""
    parts = [
        {(columns, tuple(row[column] for column in columns)) for columns in combinations(range(len(row)), size)}
        for row in rows
        for size in [min(strength, len(row))]
    ]
    missing, chosen = set().union(*parts), []
    while missing:
        best = max(range(len(rows)), key=lambda place: len(parts[place] & missing))
        missing -= parts[best]
        chosen.append(best)
    return sorted(chosen)


def mark_the_rest_thorough(items: Sequence, thorough) -> None:
    """Of each test marked `spread(strength)`, what `spread` does not choose gets the mark `thorough`."""
    functions = defaultdict(list)
    for item in items:
        if item.get_closest_marker("spread"):
            functions[item.nodeid.split("[")[0]].append(item)
    for same in functions.values():
        (strength,) = same[0].get_closest_marker("spread").args
        chosen = spread([tuple(map(repr, item.callspec.params.values())) for item in same], strength)
        for place, item in enumerate(same):
            if place not in chosen:
                item.add_marker(thorough)
