"""The picture, the text and the browser's data of finished runs, against the numbers they show."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.account.run_summary import RunSummary
from dit_accel.accel.attention.account.timeline import Step, Timeline, Times
from dit_accel.accel.attention.budget import parse_blocks
from dit_accel.accel.report import advice, bar_chart, drawing, figures
from dit_accel.accel.report.grid import BLANK, HATCH, Heatmap
from dit_accel.accel.report.heatmap import MARGIN, WIDTH, report_picture
from dit_accel.accel.report.payload import payload
from dit_accel.accel.report.scale import GREEN_BLUE, PEACH_PURPLE, Scale, round_top
from dit_accel.accel.report.words import report_text


def make_run(layers=6, columns=4, seed=0):
    random = np.random.default_rng(seed)
    density = random.random((layers, columns)).round(3)
    density[:, 0] = 1
    error = random.random((layers, columns)) * 0.2
    blank = random.random((layers, columns)) < 0.4
    blank[:, 0] = True
    return RunSummary(
        "svg2",
        "WanModel",
        "auto (faithful)",
        sparse={"triton": 18},
        dense={"cross-attention": 24, reasons.OUTSIDE_WINDOW: 6, f"{reasons.NO_KERNEL}: {'a long reason ' * 12}": 0},
        density=0.4,
        plan_share=0.41,
        timeline=Timeline(
            tuple(Step(i + 2, 1 - i / columns, 1, 2.0, None if i else reasons.OUTSIDE_WINDOW) for i in range(columns)),
            tuple(tuple(row) for row in density.tolist()),
            tuple(
                tuple(None if b else e for e, b in zip(*row, strict=True))
                for row in zip(error.tolist(), blank, strict=True)
            ),
            tuple(tuple(None if b else 0.9 for b in row) for row in blank),
            Times(planning=1.0, kernel=3.0, dense=0.5, other=3.46, dense_steps=2.0, guard=0.04),
            ("layer 3 raised",),
        ),
    )


RUN = make_run()


def luminance(colour):
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


@pytest.mark.parametrize("anchors", [GREEN_BLUE, PEACH_PURPLE])
def test_more_is_darker_in_even_steps_and_nothing_looks_like_a_blank(anchors):
    scale = Scale(anchors, 0.5)
    light = [luminance(scale.colour(i / 200)) for i in range(101)]
    assert all(a - b > 0.5 for a, b in pairwise(light))
    assert min(abs(luminance(blank) - light[0]) for blank in (BLANK, HATCH)) > 2
    spread = [max(scale.colour(i / 200)) - min(scale.colour(i / 200)) for i in range(101)]
    assert min(spread) > 40 > max(max(blank) - min(blank) for blank in (BLANK, HATCH))
    assert scale.colour(7) == scale.colour(0.5) == anchors[-1]
    assert scale.colour(-1) == anchors[0]


@pytest.mark.parametrize(
    ("values", "top"), [((0.03, 0.013), 0.05), ((0.1,), 0.1), ((0.11,), 0.2), ((3.0,), 1.0), ((), 1.0), ((0.0,), 1.0)]
)
def test_the_scale_ends_at_a_round_number(values, top):
    assert round_top(values) == pytest.approx(top)


@pytest.mark.parametrize(("layers", "columns"), [(6, 4), (60, 50), (1, 1), (3, 200)])
def test_every_cell_has_the_colour_of_its_value_and_a_blank_one_none(layers, columns):
    run = make_run(layers, columns)
    for values, anchors in ((run.timeline.density, GREEN_BLUE), (run.timeline.error, PEACH_PURPLE)):
        heatmap = Heatmap("title", values, range(columns), Scale(anchors, 0.2))
        picture = heatmap.draw()
        for layer, row in enumerate(values):
            for column, value in enumerate(row):
                left, top, right, bottom = heatmap.box(layer, column)
                colours = {colour for _, colour in picture.crop((left, top, right + 1, bottom + 1)).getcolors()}
                if value is None:
                    assert colours <= {BLANK, HATCH}
                else:
                    assert colours == {heatmap.scale.colour(value)}


def test_what_is_no_number_is_blank():
    heatmap = Heatmap("title", ((math.nan, math.inf, 0.1),), range(3), Scale(PEACH_PURPLE))
    picture = heatmap.draw()
    assert [picture.getpixel(heatmap.box(0, c)[:2]) in (BLANK, HATCH) for c in range(3)] == [True, True, False]


def contains(picture, part, top, left):
    box = (left, top, left + part.width, top + part.height)
    return ImageChops.difference(picture.crop(box), part).getbbox() is None


def test_the_picture_holds_the_panels_of_its_runs():
    other = make_run(seed=1)
    picture = report_picture([("High noise", RUN), ("Low noise", other)])
    # One scale for the errors of all runs.
    errors = Scale(PEACH_PURPLE, round_top(v for run in (RUN, other) for v in figures.measured(run.timeline.error)))
    for run in (RUN, other):
        steps = [step.number for step in run.timeline.steps]
        density = Heatmap(
            "Density: kept part of the attention map", run.timeline.density, steps, Scale(GREEN_BLUE)
        ).draw()
        error = Heatmap("Error: relative L2 of the output", run.timeline.error, steps, errors).draw()
        (top,) = [y for y in range(picture.height) if contains(picture, density, y, MARGIN)]
        right = picture.width - MARGIN - error.width
        assert contains(picture, error, top, right)
        assert right > MARGIN + density.width


@pytest.mark.parametrize(("layers", "columns"), [(6, 4), (60, 50), (2, 300), (1, 1)])
def test_nothing_runs_over_the_edge(layers, columns):
    picture = report_picture([("Run", make_run(layers, columns))])
    inside = ImageChops.difference(picture, Image.new("RGB", picture.size, drawing.PAPER)).getbbox()
    assert inside[0] >= MARGIN and inside[2] <= picture.width - MARGIN
    assert picture.width >= WIDTH


def test_a_run_that_recorded_no_step_still_has_its_reasons_and_advice():
    bare = RunSummary("svg2", "WanModel", "faithful", dense={reasons.TOO_SHORT: 40})
    picture = report_picture([("Run", bare)])
    assert picture.height > 300
    assert "nothing was sparse" in report_text([("Run", bare)], advice.all_advice([("Run", bare)]))
    silent = RunSummary("svg2", "WanModel", "faithful")
    assert report_picture([("Run", silent)]).height < picture.height
    assert report_text([("Run", silent)], []).endswith("What to change:\n- nothing")


def test_the_time_bar_is_cut_as_the_time_was_spent():
    shares = figures.time_shares(RUN.timeline)
    assert sum(share for _, _, share in shares) == pytest.approx(1)
    bar = bar_chart.time_bar(shares, 1000)
    colours = [bar.getpixel((x, 5)) for x in range(1000)]
    counts = {name: colours.count(colour) for name, colour in bar_chart.TIME_COLOURS.items()}
    assert counts.pop("recording") == 0, "nothing was recorded"
    assert counts == {"planning": 100, "kernel": 300, "dense": 50, "other": 346, "dense_steps": 200, "guard": 4}
    assert figures.time_shares(Timeline()) == []


def test_bars_of_counts_are_as_long_as_the_counts():
    picture = bar_chart.count_bars([("first", 40), ("second", 10)], 600)
    pixels = np.asarray(picture)
    lengths = {int((row == bar_chart.REASON_COLOUR).all(-1).sum()) for row in pixels} - {0}
    long, short = max(lengths), min(lengths)
    assert len(lengths) == 2 and short == pytest.approx(long / 4, abs=1)


@given(st.text(alphabet="ab c", max_size=120), st.integers(30, 400))
def test_wrapped_text_fits_and_is_whole(text, width):
    lines = drawing.wrap(text, drawing.TEXT, width)
    assert all(drawing.text_width(line, drawing.TEXT) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(text.split())


@given(st.floats(-100, 100), st.floats(1e-3, 1e3))
def test_ticks_are_few_round_and_inside(low, span):
    found = drawing.ticks(low, low + span)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-5 * span <= tick <= low + span * (1 + 1e-5) for tick in found)


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_what_dense_blocks_reads(numbers):
    assert parse_blocks(figures.ranges(numbers)) == numbers


def test_numbers_in_words():
    assert [figures.per_cent(x) for x in (0.31, 0.004, 0, 1)] == ["31 %", "0.4 %", "0 %", "100 %"]
    assert [figures.seconds_text(x) for x in (0.04, 12.34, 123.4)] == ["0.04 s", "12.3 s", "123 s"]


def test_the_text_says_all_of_it():
    text = report_text([("High noise", RUN), ("Low noise", RUN)], ["do this", "and that"])
    assert text.count(RUN.line()) == 2
    paragraphs = text.split("\n\n")
    assert [p.splitlines()[0] for p in paragraphs] == ["High noise", "Low noise", "What to change:"]
    assert paragraphs[2].splitlines()[1:] == ["- do this", "- and that"]
    errors = figures.measured(RUN.timeline.error)
    for line in (
        "4 steps in 8.00 s: 1 dense of 2.00 s, 3 sparse of 2.00 s",
        f"sampled error: {np.mean(errors):.4f} on average, {max(errors):.4f} at the most",
        "kept attention mass: 0.9000 on average, 0.9000 at the least",
        "time: planning 1.00 s (10 %), kernel 3.00 s (30 %), dense calls 0.50 s (5 %), other layers 3.46 s (35 %), "
        "dense steps 2.00 s (20 %), guard 0.04 s (0.4 %)",
        f"dense by reason: cross-attention 24, {reasons.OUTSIDE_WINDOW} 6",
        "guard: layer 3 raised",
    ):
        assert line in paragraphs[0].splitlines()


def test_a_guard_that_acts_all_the_time_does_not_fill_the_text():
    busy = replace(RUN, timeline=replace(RUN.timeline, guard=tuple(f"layer {i} raised" for i in range(40))))
    lines = [line for line in report_text([("Run", busy)], []).splitlines() if line.startswith("guard")]
    assert lines[0] == "guard: layer 0 raised" and lines[-1] == "guard: and 28 times more" and len(lines) == 13


def test_the_browser_gets_every_cell():
    record = RUN.timeline
    odd = replace(record, error=((math.nan, math.inf, None, 0.123456), *record.error[1:]))
    data = payload([("Run", replace(RUN, timeline=odd))], ["do this"], "text")
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    (run,) = data["runs"]
    assert (run["title"], run["layers"], data["advice"], data["text"]) == ("Run", 6, ["do this"], "text")
    assert run["error"][0] == [None, None, None, 0.1235]
    for name in ("density", "mass"):
        assert run[name] == [[v if v is None else round(v, 4) for v in row] for row in getattr(record, name)]
    assert run["steps"][1] == {"number": 3, "sigma": 0.75, "seconds": 2.0, "dense": None}
    assert run["steps"][0]["dense"] == reasons.OUTSIDE_WINDOW
    assert run["times"]["guard"] == 0.04 and len(run["times"]) == 7
    assert run["dense"] == RUN.dense and run["guard"] == ["layer 3 raised"]
