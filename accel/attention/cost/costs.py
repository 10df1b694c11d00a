"""What a call costs, dense and sparse: amounts of work times the milliseconds that one unit takes on a card.

The model is linear, so that the same amounts predict a call's time and, with measured times, fit a card's costs. It
follows the counts of SVG2 (arXiv 2505.18875) and of the kernels here. What grows with neither tokens nor clusters
(launches, the map, lists) is in the costs of a call and of a round of k-means.
"""

from __future__ import annotations

from typing import NamedTuple

from ....kernels import registry
from ....kernels.attention_configs import FORMATS
from ....kernels.axis_tree import SAMPLES, tree_depth
from ....kernels.gather import CHUNK
from ....kernels.quantise import FP8, INT8
from ..planners.planning import Planning
from .cards import BY_ARCHITECTURE, Card

LONGEST = 1 << 24  # tokens: a sparse path that does not win there never does

# Of shipped costs: the sparse kernel beside 16-bit dense attention, and memory beside its peak.
SPARSE_EFFICIENCY = 0.85  # published for SVG2's kernel
BANDWIDTH_EFFICIENCY = 0.8
CALL_MS = ROUND_MS = 1.0
LEVEL = 0.25  # a level of a tree beside a round of k-means: three launches to a dozen


class Terms(NamedTuple):
    """Amounts of work, or the milliseconds of one unit of each.

    dense, sparse_16bit, sparse_8bit: TFLOP of attention; assign: TFLOP of k-means and of scores that planning computes;
    traffic: GB that are read or written beside them; calls: sparse calls; rounds: of k-means, or as many
    launches.
    """

    dense: float = 0.0
    sparse_16bit: float = 0.0
    sparse_8bit: float = 0.0
    assign: float = 0.0
    traffic: float = 0.0
    calls: float = 0.0
    rounds: float = 0.0

    def plus(self, other: Terms) -> Terms:
        return Terms(*(a + b for a, b in zip(self, other, strict=True)))

    def milliseconds(self, costs: Terms) -> float:
        """Time of these amounts at such costs."""
        return sum(amount * cost for amount, cost in zip(self, costs, strict=True))


class Size(NamedTuple):
    """An attention call: heads of all its batch rows, tokens, video tokens among them, head dimension."""

    heads: int
    tokens: int
    video: int
    dim: int

    @property
    def tensor(self) -> float:
        """GB of q, which are those of k, v and the output too."""
        return self.heads * self.tokens * self.dim * 2e-9

    @property
    def products(self) -> float:
        """TFLOP of dense attention."""
        return 4e-12 * self.heads * self.tokens**2 * self.dim


def dense_work(size: Size) -> Terms:
    return Terms(dense=size.products)


def plan_work(size: Size, planning: Planning, rounds: float) -> Terms:
    """Work of planning with so many rounds of k-means; each reads queries and keys twice."""
    queries, keys = planning.blocks(size.video)
    per_cluster = 2e-12 * size.heads * size.video * size.dim
    assign = per_cluster * queries * planning.probe
    traffic: float = planning.means + 2 * planning.probe
    rounds *= planning.clusters
    if planning.clusters:
        assign += per_cluster * (queries + keys) * rounds
        traffic += 4 * rounds
    if planning.trees:
        for leaves in (queries, keys):
            sampled = tree_samples(size.video, leaves)
            assign += 2e-12 * size.heads * size.dim**2 * sampled
            # Every level reads the tokens that axes are found from, then all.
            traffic += sampled / size.video + tree_depth(leaves)
            rounds += LEVEL * tree_depth(leaves)
    return Terms(assign=assign, traffic=traffic * size.tensor, rounds=rounds)


def tree_samples(tokens: int, leaves: int) -> int:
    """Tokens that the axes of a tree's nodes are found from, level by level, all together."""
    return sum(min(tokens, SAMPLES << level) for level in range(tree_depth(leaves)))


def attend_work(size: Size, planning: Planning, density: float, bits: int) -> Terms:
    """Work of the sparse attention itself at a density, 0..1, in 16 or 8 bits: keys and values are gathered first."""
    kept = density * planning.padding(size.video)
    pooled = (1 - density) * planning.blocks(size.video)[1] / size.tokens if planning.tail else 0.0
    attention = Terms(**{f"sparse_{bits}bit": size.products * (kept + pooled)})
    return attention._replace(traffic=4 * size.tensor, calls=1)


def sparse_work(size: Size, planning: Planning, density: float, bits: int, rounds: int) -> Terms:
    return plan_work(size, planning, rounds).plus(attend_work(size, planning, density, bits))


def predicted_costs(architecture: str) -> Terms:
    """Costs of a chip (registry.architecture) from published peak rates; nothing of them was measured."""
    card: Card = registry.nearest(BY_ARCHITECTURE, architecture)
    attention, product = card.half * card.attention, card.half * card.product
    sparse = attention * SPARSE_EFFICIENCY
    keys, values = eight_bit_rates(card, architecture)
    return Terms(
        dense=1e3 / attention,
        sparse_16bit=1e3 / sparse,
        sparse_8bit=1e3 / sparse * (card.half / keys + card.half / values) / 2,
        assign=1e3 / product,
        traffic=1 / (card.bandwidth * BANDWIDTH_EFFICIENCY),
        calls=CALL_MS,
        rounds=ROUND_MS,
    )


def eight_bit_rates(card: Card, architecture: str) -> tuple[float, float]:
    """Peak TFLOP/s of queries with keys and of weights with values, in the formats that 8-bit means on the chip."""
    formats = registry.nearest(FORMATS, architecture)[0]
    rates = {None: card.half, INT8: card.int8}
    if card.fp8 is not None:
        rates[FP8] = card.fp8
    return rates[formats.keys], rates[formats.values]


def break_even(costs: Terms, size: Size, planning: Planning, density: float, bits: int, rounds: int) -> int | None:
    """Tokens, all of them video, from which on the sparse path wins at these costs; None where it never does. The
    tokens of `size` do not matter."""

    def wins(tokens: int) -> bool:
        at = size._replace(tokens=tokens, video=tokens)
        return sparse_work(at, planning, density, bits, rounds).milliseconds(costs) < dense_work(at).milliseconds(costs)

    low, high = CHUNK, LONGEST
    if not wins(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if wins(middle) else (middle, high)
    return high
