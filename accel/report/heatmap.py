"""The picture of finished runs: density and error of every layer in every step, where time went, and what to change."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..attention.account.run_summary import RunSummary
from ..attention.reasons import of_video
from .advice import all_advice
from .bar_chart import count_bars, time_bar
from .drawing import HEADING, MUTED, TITLE, beside, framed, paragraph, rule, stack
from .figures import by_count, measured, seconds_text, time_shares
from .grid import Heatmap
from .scale import GREEN_BLUE, PEACH_PURPLE, Scale, round_top

WIDTH, MARGIN = 1360, 40
GAP = 22


def report_picture(runs: Sequence[tuple[str, RunSummary]]) -> Image.Image:
    """runs: (title, summary), one below the other; their errors share one scale."""
    errors = Scale(PEACH_PURPLE, round_top(value for _, run in runs for value in measured(run.timeline.error)))
    panels = [_panels(run, errors) for _, run in runs]
    # Many steps need a wider picture.
    width = max(WIDTH, *(panel.width for panel in panels))
    blocks = []
    for (title, run), panel in zip(runs, panels, strict=True):
        if blocks:
            blocks.append(rule(width))
        blocks += [_heading(title, run, width), panel, *_bars(run, width)]
    sentences = all_advice(runs)
    if sentences:
        lines = [paragraph(sentence, width, mark="-") for sentence in sentences]
        blocks.append(stack([paragraph("What to change", width, HEADING), *lines], gap=6))
    return framed(stack(blocks, GAP), MARGIN)


def _heading(title: str, run: RunSummary, width: int) -> Image.Image:
    return stack([paragraph(title, width, TITLE), paragraph(run.line(), width, fill=MUTED)], gap=6)


def _panels(run: RunSummary, errors: Scale) -> Image.Image:
    timeline = run.timeline
    if not timeline.steps or not timeline.density:
        return paragraph("No step of this run was recorded.", WIDTH)
    steps = [step.number for step in timeline.steps]
    density = Heatmap("Density: kept part of the attention map", timeline.density, steps, Scale(GREEN_BLUE), "no call")
    error = Heatmap("Error: relative L2 of the output", timeline.error, steps, errors)
    drawn = [density.draw(), error.draw()]
    return beside(drawn, gap=max(40, WIDTH - sum(panel.width for panel in drawn)))


def _bars(run: RunSummary, width: int) -> list[Image.Image]:
    blocks = []
    if shares := time_shares(run.timeline):
        total = sum(seconds for _, seconds, _ in shares)
        heading = paragraph(f"Where {seconds_text(total)} of model time went", width, HEADING)
        blocks.append(stack([heading, time_bar(shares, width)], gap=8))
    own = of_video(run.dense)
    if any(own.values()):
        heading = paragraph("Dense calls of the video's self-attention by reason", width, HEADING)
        blocks.append(stack([heading, count_bars(by_count(own), width)], gap=8))
    if others := by_count({reason: count for reason, count in run.dense.items() if reason not in own}):
        text = "Always dense: " + ", ".join(f"{count} calls of {reason}" for reason, count in others)
        blocks.append(paragraph(text, width, fill=MUTED))
    return blocks
