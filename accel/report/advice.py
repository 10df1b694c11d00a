"""What a finished run suggests to change: plain sentences, each from a measured number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from statistics import median

from ..attention import reasons
from ..attention.account.run_summary import RunSummary
from ..attention.account.timeline import Step
from ..attention.budget import CUSTOM, Budget
from ..attention.planners import PATTERNS
from .figures import finite, mean, measured, per_cent, ranges, sparse_steps

# A layer that never goes below this density saves little, and what it saves costs planning.
DENSE_LAYER = 0.6
# Share of the run's time from which dense steps at one end of the schedule are worth a sentence.
DENSE_STEPS = 0.3
# Share of the sparse calls' time from which planning is.
PLANNING = 1 / 3
# Above this mean density attention is hardly sparse.
LITTLE_SKIPPED = 0.7
# Share of the query blocks from which it is max_density that decides, not top_p.
CAPPED = 0.5
# Mean relative L2 of the attention output on sampled rows: above the first it is seen in the picture; below the second
# there is room, where enough is still kept.
MUCH_ERROR = 0.15
LITTLE_ERROR = 0.02
ROOM = 0.4

_NOTHING_SPARSE = {
    reasons.TOO_SHORT: "the video is shorter than min_tokens. Sparse attention gains nothing on short videos: make it "
    "longer or larger, or lower min_tokens to try all the same",
    reasons.NO_KERNEL: "no fast kernel can run here: `dit-accel doctor` says what is missing",
    reasons.DENSE_FASTER: "dense attention is predicted to be faster at this size: `dit-accel bench gate` measures "
    "this card",
    reasons.TIMED_DENSE: "dense attention was faster at this size, by this run's own times: longer or larger videos "
    "gain",
    reasons.OTHER_OVERRIDE: "another sparse attention owns the calls: keep one of the two",
    reasons.FAMILY: "this model's family is not enabled, the model runs as without the node",
    reasons.OUTSIDE_WINDOW: "every step lies outside the budget's window: lower dense_first or dense_last",
    reasons.DENSE_BLOCK: "all blocks are listed as dense: shorten dense_blocks",
    reasons.NOT_ASKED: "this run only recorded. Make a profile of it, and put Sparse Attention before the sampler",
}

# What only the preset custom reads.
_NUMBERS = [field.name for field in fields(Budget) if field.name not in ("preset", "profile")]


def advice(summary: RunSummary) -> list[str]:
    """Sentences in plain words, none where the run gives no reason for one. They never contradict each other."""
    sentences = [sentence for rule in _RULES if (sentence := rule(summary))]
    if CUSTOM not in summary.budget and any(name in sentence for sentence in sentences for name in _NUMBERS):
        sentences.append(f"numbers of the budget count with its preset custom; this run had {summary.budget}")
    return sentences


def all_advice(runs: Sequence[tuple[str, RunSummary]]) -> list[str]:
    """That of every run, (title, summary); with its title where there are several runs."""
    if len(runs) == 1:
        return advice(runs[0][1])
    return [f"{title}: {sentence}" for title, summary in runs for sentence in advice(summary)]


def _nothing_sparse(summary: RunSummary) -> str | None:
    video = reasons.of_video(summary.dense)
    if summary.sparse_calls or not video:
        return None
    main = max(video, key=video.__getitem__)
    # Some reasons are followed by their particulars.
    known = next((words for reason, words in _NOTHING_SPARSE.items() if main.startswith(reason)), None)
    return f"nothing was sparse: {known or f'of {sum(video.values())} calls {video[main]} stayed dense by: {main}'}"


def _dense_layers(summary: RunSummary) -> str | None:
    columns = sparse_steps(summary.timeline)
    lowest: dict[int, float] = {}
    for layer, row in enumerate(summary.timeline.density):
        if values := [row[column] for column in columns if finite(row[column]) is not None]:
            lowest[layer] = min(values)
    # Exactly 1 in every step: it is dense already.
    saving = {layer: density for layer, density in lowest.items() if density < 1}
    high = [layer for layer, density in saving.items() if density >= DENSE_LAYER]
    if not high or len(high) == len(saving):
        return None
    listed = lowest.keys() - saving.keys() if reasons.DENSE_BLOCK in summary.dense else set()
    blocks = f"dense_blocks {ranges({*high, *listed})}"
    if len(high) == 1:
        return f"layer {high[0]} never goes below {DENSE_LAYER}: list it as dense ({blocks})"
    return f"layers {ranges(high)} never go below {DENSE_LAYER}: list them as dense ({blocks})"


def _dense_first(summary: RunSummary) -> str | None:
    # The first step fixes the composition: it is never given away unasked.
    advised = _dense_end(summary, "dense_first", summary.timeline.steps, at_least=1)
    only = _dense_end(summary, "dense_first", summary.timeline.steps, at_least=0)
    if advised or only is None:
        return advised
    cost, _, _ = only.partition(":")
    return f"{cost}. It fixes the composition: dense_first 0 makes it sparse too, and the take may change"


def _dense_last(summary: RunSummary) -> str | None:
    return _dense_end(summary, "dense_last", summary.timeline.steps[::-1], at_least=0)


def _dense_end(summary: RunSummary, name: str, steps: Sequence[Step], at_least: int) -> str | None:
    """steps: counted from the end of the schedule that the input `name` keeps dense."""
    sparse = [step.seconds for step in steps if step.dense is None]
    count = next((i for i, step in enumerate(steps) if step.dense != reasons.OUTSIDE_WINDOW), len(steps))
    if not sparse or count <= at_least:
        return None
    dense = [step.seconds for step in steps[:count]]
    total = sum(step.seconds for step in steps)
    if sum(dense) <= DENSE_STEPS * total or median(dense) <= median(sparse):
        return None
    keep = max(at_least, count // 2)
    cost = f"one dense step costs {per_cent(mean(dense) / total)} of the run"
    if count > 1:
        cost += f", the {count} at its {'start' if at_least else 'end'} together {per_cent(sum(dense) / total)}"
    return f"{cost}: try {name} {_fraction(keep, len(steps)):g}"


def _fraction(keep: int, steps: int) -> float:
    """A round number for dense_first or dense_last that keeps `keep` of `steps` evenly spaced steps dense."""
    if keep == 0:
        return 0.0
    # Anything above (keep - 1) / steps and up to keep / steps does; the middle suffers uneven steps best.
    middle = (keep - 0.5) / steps
    rounded = round(middle, 1)
    return rounded if abs(rounded - middle) <= 0.3 / steps else max(0.01, round(middle, 2))


def _dial(summary: RunSummary) -> str:
    """The input that decides how much is kept."""
    if summary.profiled:
        return "what the profile keeps"
    return "max_density" if PATTERNS[summary.pattern].static or summary.capped > CAPPED else "top_p"


def _much_error(summary: RunSummary) -> str | None:
    error = mean(measured(summary.timeline.error))
    if not summary.sparse_calls or error is None or error <= MUCH_ERROR:
        return None
    return f"the sampled error is {error:.2f} on average, which shows: raise {_dial(summary)}"


def _may_skip_more(summary: RunSummary) -> bool:
    return bool(summary.sparse_calls) and not _much_error(summary) and not summary.timeline.guard


def _room(summary: RunSummary) -> str | None:
    error = mean(measured(summary.timeline.error))
    if not _may_skip_more(summary) or error is None or error >= LITTLE_ERROR or summary.density <= ROOM:
        return None
    return (
        f"the sampled error is only {error:.3f} on average at density {summary.density:.2f}: there is room, lower "
        f"{_dial(summary)}"
    )


def _little_skipped(summary: RunSummary) -> str | None:
    if not _may_skip_more(summary) or summary.density <= LITTLE_SKIPPED:
        return None
    return f"the mean density is {summary.density:.2f}: so there is little to gain, lower {_dial(summary)}"


def _capped(summary: RunSummary) -> str | None:
    if not summary.sparse_calls or summary.capped <= CAPPED or _room(summary) or _little_skipped(summary):
        return None
    return f"max_density cut {per_cent(summary.capped)} of the query blocks: raise it to let top_p decide"


def _planning(summary: RunSummary) -> str | None:
    pattern = PATTERNS[summary.pattern]
    if not summary.sparse_calls or pattern.static or summary.plan_share <= PLANNING:
        return None
    sorted_by_content = pattern.planning.clusters or pattern.planning.trees
    cheaper = "the pattern pooled plans" if sorted_by_content else "the patterns radial and window plan"
    return f"planning takes {per_cent(summary.plan_share)} of the sparse calls' time: {cheaper} with less"


def _guard(summary: RunSummary) -> str | None:
    if not summary.timeline.guard:
        return None
    first, *more = summary.timeline.guard
    times = f"{len(more) + 1} times (first: {first})" if more else f"once ({first})"
    return f"the guard stepped in {times}: if it does in every run, raise {_dial(summary)}"


def _unmeasured(summary: RunSummary) -> str | None:
    if not summary.sparse_calls or measured(summary.timeline.error):
        return None
    return "no error was sampled: set guard to on in Sparse Attention to see what skipping costs"


# One row a sentence, in the order of what matters most.
_RULES: tuple[Callable[[RunSummary], str | None], ...] = (
    _nothing_sparse,
    _guard,
    _much_error,
    _room,
    _little_skipped,
    _capped,
    _dense_first,
    _dense_last,
    _dense_layers,
    _planning,
    _unmeasured,
)
