"""Measures error against density during a user's own run: for every layer and head, at three noise levels.

A few query rows of each attention call are computed exactly; what each candidate budget would have given for the same
rows follows from its plan, without running it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..account.forward_statistics import ForwardStatistics
from ..account.recording import Level, Recording, Timing
from ..account.sample import sampled_rows
from ..call import AttentionCall
from ..planners import PATTERNS
from ..spending import Spending

CANDIDATES = (0.2, 0.45, 0.65, 0.8, 0.88, 0.94, 0.975, 0.99, 0.999)
FLOOR = 0.02
ROWS = 64
LEVELS = 3
MOST_TURNS = 8
# Where presets begin to be sparse: levels are thirds of what follows.
BEGIN = 0.2
# fp32 numbers of weights that are held at a time.
CHUNK = 1 << 24


def observed_steps(steps: int) -> dict[int, int]:
    """In which steps, from 0, of a run of `steps` measurements are made, and at which of the three noise levels each
    of them is counted. A level of a long run takes several steps, in each of which some layers are measured."""
    begin, third, wide = _begin(steps), (steps - _begin(steps)) / LEVELS, turns(steps)
    starts = [begin + int(level * third) + int(third - wide) // 2 for level in range(LEVELS)]
    # A run of up to three steps has fewer levels.
    return {start + turn: level for level, start in enumerate(starts) for turn in range(wide)}


def turns(steps: int) -> int:
    """How many steps share the work of one level."""
    return max(1, min(MOST_TURNS, int((steps - _begin(steps)) / LEVELS)))


def _begin(steps: int) -> int:
    return round(steps * BEGIN)


@dataclass
class _Sums:
    """On the CPU, fp64: density [H, P], error [H, P], norm [H] and calls that were added."""

    density: Tensor
    error: Tensor
    norm: Tensor
    calls: int = 1

    def add(self, other: _Sums) -> None:
        self.density += other.density
        self.error += other.error
        self.norm += other.norm
        self.calls += other.calls


class Observer:
    """One run's measurements. pattern: the plans that are tried. max_density: the budget's, which static patterns aim
    at. steps: of the run."""

    def __init__(self, pattern: str, max_density: float, steps: int) -> None:
        self.pattern = pattern
        self.max_density = max_density
        self.problem: str | None = None
        self.stopped: str | None = None
        self._spendings = [Spending(top_p, False, FLOOR, max_density) for top_p in CANDIDATES]
        self._levels = observed_steps(steps)
        self._turns = turns(steps)
        self._sums: dict[int, dict[int, _Sums]] = {}
        self._sigmas: dict[int, float] = {}
        self._dense_calls: list[float] = []
        self._sparse_calls: list[tuple[float, float]] = []
        self._dense_steps: dict[int, float] = {}
        self._calls: Counter[int] = Counter()
        self._sparse_steps: set[int] = set()
        self._expected = 0
        self._tried: set[int] = set()

    def observes(self, step: int) -> bool:
        """Whether some of the step's calls are measured."""
        return step in self._levels

    def measures(self, block: int, step: int) -> bool:
        """Whether it is this block's turn."""
        return self.stopped is None and step in self._levels and (block + step) % self._turns == 0

    def observe(self, call: AttentionCall, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `measure` says of the call. Never waits."""
        return measure(replace(call, shared={}), self.pattern, self._spendings, turn=step)

    def stop(self, reason: str) -> None:
        """Measuring failed; the run goes on without."""
        self.stopped = reason

    def give_up(self, reason: str) -> None:
        """As `stop`, and what was measured is lost."""
        self.stop(reason)
        self._sums.clear()

    def tries(self, step: int) -> bool:
        """Whether a sparse call should be run for its time alone: once at each noise level."""
        level = self._levels[step]
        if level in self._tried:
            return False
        self._tried.add(level)
        return True

    def learn(self, forward: ForwardStatistics) -> None:
        """Takes in a finished forward that was read. Waits for the device."""
        for block, tensors in forward.observations:
            density, error, norm = (x.double().cpu() for x in tensors)
            new, level = _Sums(density, error, norm), self._levels[forward.step]
            layers = self._sums.setdefault(level, {})
            if block in layers:
                layers[block].add(new)
            else:
                layers[block] = new
            self._sigmas[level] = forward.sigma
        self._sparse_calls += forward.trials
        self._calls[forward.step] += len(forward.calls)
        for call in forward.calls:
            if call.top_p is not None:
                self._sparse_calls.append((call.density, sum(call.laps[:2])))
            elif call.laps:
                self._dense_calls.append(call.laps[0])
        self._expected = max(self._expected, forward.expected)
        if forward.sparse:
            self._sparse_steps.add(forward.step)
        else:
            spent = self._dense_steps.get(forward.step, 0.0)
            self._dense_steps[forward.step] = spent + forward.seconds() - forward.observing

    def recording(self, model: str, steps: int, dense_steps: int) -> Recording | None:
        """What was measured; None where no layer came by at every level that was."""
        if not self._sums:
            return None
        layers = sorted(set.intersection(*(set(by_block) for by_block in self._sums.values())))
        # A cache may have skipped steps: some layers came by at one level, others at the next.
        if not layers:
            return None
        levels = tuple(self._level(level, layers) for level in sorted(self._sums))
        timing = Timing(
            dense_step=_median([s for step, s in self._dense_steps.items() if step not in self._sparse_steps]),
            dense_call=_median(self._dense_calls),
            calls=max(self._calls.values()),
            sparse=tuple(self._sparse_calls),
            problem=self.problem,
            steps=steps,
            dense_steps=dense_steps,
        )
        return Recording(
            pattern=self.pattern,
            model=model,
            layers=tuple(layers),
            top_p=CANDIDATES,
            floor=FLOOR,
            max_density=self.max_density,
            calls=self._expected,
            levels=levels,
            timing=timing,
        )

    def _level(self, level: int, layers: Sequence[int]) -> Level:
        sums = [self._sums[level][layer] for layer in layers]
        return Level(
            self._sigmas[level],
            torch.stack([layer.density / layer.calls for layer in sums]),
            torch.stack([layer.error for layer in sums]),
            torch.stack([layer.norm for layer in sums]),
        )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def measure(
    call: AttentionCall, pattern: str, spendings: Sequence[Spending], turn: int, rows: int = ROWS
) -> tuple[Tensor, Tensor, Tensor]:
    """Density [H, P] of each plan, squared error [H, P] of its output and squared norm [H] of dense attention, summed
    over the batch and sampled rows; fp32. call: one whose plans share what was `made`. Never waits."""
    tokens = sampled_rows(call.layout, rows, turn, call.q.device)
    queries = call.q.index_select(2, tokens)
    plans = [PATTERNS[pattern].plan(call, spending) for spending in spendings]
    density = torch.stack([plan.density_by_head().mean(0) for plan in plans], dim=-1)
    # All plans of a call have its orders in common.
    key_block = plans[0].keys.block_of_token()
    query_block = plans[0].queries.block_of_token().index_select(2, tokens)

    heads, errors, norms = call.q.shape[1], [], []
    step = max(1, CHUNK // (call.q.shape[0] * len(tokens) * call.q.shape[2]))
    for start in range(0, heads, step):
        some = slice(start, start + step)
        k, v = (x[:, some].float() for x in (call.k, call.v))
        logits = queries[:, some].float() @ k.mT * call.scale
        weights = logits.softmax(-1)
        exact = weights @ v
        norms.append(exact.square().sum((0, 2, 3)))
        errors.append(
            torch.stack(
                [
                    _difference(call, plan, some, logits, weights, exact, queries, query_block, key_block, v)
                    for plan in plans
                ],
                dim=-1,
            )
        )
    return density, torch.cat(errors), torch.cat(norms)


def _difference(call, plan, some, logits, weights, exact, queries, query_block, key_block, v) -> Tensor:
    """Squared error [h] of the plan's output for the rows of the heads `some`."""
    blocks = query_block[:, some, :, None].expand(-1, -1, -1, plan.keep.shape[-1])
    keep = plan.keep[:, some].gather(2, blocks)
    kept = weights * keep.gather(3, key_block[:, some, None].expand(-1, -1, keep.shape[2], -1))
    mass, out = kept.sum(-1, keepdim=True), kept @ v
    if plan.tail is not None:
        pooled = queries[:, some].float() @ plan.tail.keys[:, some].float().mT * call.scale
        pooled = pooled + plan.tail.log_sizes[:, some, None]
        pooled = (pooled - logits.logsumexp(-1, keepdim=True)).exp().masked_fill(keep, 0.0)
        mass, out = mass + pooled.sum(-1, keepdim=True), out + pooled @ plan.tail.values[:, some].float()
    return (out / mass - exact).square().sum((0, 2, 3))
