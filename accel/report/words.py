"""Finished runs as text."""

from __future__ import annotations

from collections.abc import Sequence

from ..attention.account.run_summary import RunSummary
from ..attention.account.timeline import Timeline
from .figures import TIME_NAMES, by_count, mean, measured, per_cent, seconds_text, time_shares

# Where it has to act in every layer and step, the first lines tell as much as all of them.
GUARD_LINES = 12


def report_text(runs: Sequence[tuple[str, RunSummary]], advice: Sequence[str]) -> str:
    """runs: (title, summary); advice: sentences. Lines of plain text, a paragraph for each run."""
    paragraphs = ["\n".join([title, *_lines(run)]) for title, run in runs]
    paragraphs.append("\n".join(["What to change:", *(f"- {sentence}" for sentence in advice or ["nothing"])]))
    return "\n\n".join(paragraphs)


def _lines(run: RunSummary) -> list[str]:
    lines = [run.line()]
    if run.timeline.steps:
        lines.append(_steps(run.timeline))
    lines += _quality(run.timeline)
    if shares := time_shares(run.timeline):
        parts = (f"{TIME_NAMES[name]} {seconds_text(seconds)} ({per_cent(share)})" for name, seconds, share in shares)
        lines.append(f"time: {', '.join(parts)}")
    if counts := by_count(run.dense):
        lines.append(f"dense by reason: {', '.join(f'{reason} {count}' for reason, count in counts)}")
    sentences = run.timeline.guard
    lines += [f"guard: {sentence}" for sentence in sentences[:GUARD_LINES]]
    if len(sentences) > GUARD_LINES:
        lines.append(f"guard: and {len(sentences) - GUARD_LINES} times more")
    return lines


def _steps(timeline: Timeline) -> str:
    """4 steps in 9.50 s: 1 dense of 3.80 s, 3 sparse of 1.90 s"""
    seconds = {
        "dense": [step.seconds for step in timeline.steps if step.dense is not None],
        "sparse": [step.seconds for step in timeline.steps if step.dense is None],
    }
    parts = [f"{len(times)} {kind} of {seconds_text(mean(times))}" for kind, times in seconds.items() if times]
    total = seconds_text(sum(step.seconds for step in timeline.steps))
    return f"{len(timeline.steps)} steps in {total}: {', '.join(parts)}"


def _quality(timeline: Timeline) -> list[str]:
    errors, masses = measured(timeline.error), measured(timeline.mass)
    lines = []
    if errors:
        lines.append(f"sampled error: {mean(errors):.4f} on average, {max(errors):.4f} at the most")
    if masses:
        lines.append(f"kept attention mass: {mean(masses):.4f} on average, {min(masses):.4f} at the least")
    return lines
