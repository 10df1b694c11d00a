"""Every sentence of the advice: a run that calls for it, one that does not, and no two that contradict each other."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.account.run_summary import RunSummary
from dit_accel.accel.attention.account.timeline import Step, Timeline
from dit_accel.accel.attention.budget import Budget, parse_blocks
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.schedule import SigmaWindow
from dit_accel.accel.report.advice import advice, all_advice

WINDOW = reasons.OUTSIDE_WINDOW


def steps(*dense, slow=1.0, fast=0.9):
    """One step for each reason, None for a sparse one."""
    return tuple(
        Step(i, 1 - i / len(dense), 1, slow if reason else fast, dense=reason) for i, reason in enumerate(dense)
    )


def run(timeline=None, **changes):
    """A run that nothing is to be said about."""
    timeline = timeline or {}
    all_steps = timeline.pop("steps", steps(WINDOW, *[None] * 9))
    sparse = [step.dense is None for step in all_steps]
    defaults = {
        "steps": all_steps,
        "density": tuple(tuple(0.3 if s else 1.0 for s in sparse) for _ in range(4)),
        "error": tuple(tuple(0.05 if s else None for s in sparse) for _ in range(4)),
    }
    known = {"pattern": "svg2", "model": "WanModel", "budget": "custom", "sparse": {"triton": 36}, "density": 0.3}
    known |= {"dense": {WINDOW: 4}, "plan_share": 0.1}
    return RunSummary(**{**known, **changes}, timeline=Timeline(**{**defaults, **timeline}))


def everywhere(value, layers=4, columns=10):
    return tuple((value,) * columns for _ in range(layers))


def nothing(reason, count=40):
    return run({"error": everywhere(None)}, sparse={}, density=0.0, dense={reason: count, "cross-attention": 400})


def layers(*densities):
    """The first step is dense, the others have the layer's density, the last a little more."""
    return {"density": tuple((1.0, *[d] * 8, min(1.0, d + 0.05)) for d in densities)}


def test_a_run_without_reproach_gets_no_advice():
    assert advice(run()) == []


@pytest.mark.parametrize(
    ("expected", "does", "does_not"),
    [
        ("shorter than min_tokens", nothing(reasons.TOO_SHORT), run(dense={reasons.TOO_SHORT: 400})),
        ("`dit-accel doctor`", nothing(f"{reasons.NO_KERNEL}: no compiler"), run(dense={reasons.NO_KERNEL: 9})),
        ("`dit-accel bench gate`", nothing(reasons.DENSE_FASTER), run(dense={reasons.DENSE_FASTER: 9})),
        ("keep one of the two", nothing(f"{reasons.OTHER_OVERRIDE}: theirs"), run(dense={reasons.OTHER_OVERRIDE: 9})),
        ("family is not enabled", nothing(reasons.FAMILY), run(dense={reasons.FAMILY: 9})),
        ("lower dense_first or dense_last", nothing(WINDOW), run(dense={WINDOW: 400})),
        ("shorten dense_blocks", nothing(reasons.DENSE_BLOCK), run(dense={reasons.DENSE_BLOCK: 400})),
        ("of 40 calls 40 stayed dense by: gradients", nothing("gradients"), run(dense={"gradients": 40})),
        (
            "the sampled error is 0.16 on average, which shows: raise top_p",
            run({"error": everywhere(0.16)}),
            run({"error": everywhere(0.15)}),
        ),
        (
            "the sampled error is 0.20 on average, which shows: raise max_density",
            run({"error": everywhere(0.2)}, pattern="radial"),
            run({"error": everywhere(0.1)}, pattern="radial"),
        ),
        (
            "the sampled error is only 0.010 on average at density 0.45: there is room, lower top_p",
            run({"error": everywhere(0.01)}, density=0.45),
            run({"error": everywhere(0.01)}, density=0.35),
        ),
        (
            "the sampled error is only 0.010 on average",
            run({"error": everywhere(0.01)}, density=0.45),
            run({"error": everywhere(0.03)}, density=0.45),
        ),
        ("the mean density is 0.72: so there is little to gain", run(density=0.72), run(density=0.69)),
        ("max_density cut 60 % of the query blocks: raise it", run(capped=0.6), run(capped=0.4)),
        (
            "planning takes 40 % of the sparse calls' time: the pattern pooled plans",
            run(plan_share=0.4),
            run(plan_share=0.3),
        ),
        ("the pattern pooled plans", run(plan_share=0.4, pattern="tree"), run(plan_share=0.3, pattern="tree")),
        ("radial and window plan", run(plan_share=0.4, pattern="pooled"), run(plan_share=0.4, pattern="radial")),
        (
            "the guard stepped in 2 times (first: layer 3 raised to 0.95): if it does in every run, raise top_p",
            run({"guard": ("layer 3 raised to 0.95", "one evaluation repeated")}),
            run({"guard": ("layer 3 raised to 0.95",)}),
        ),
        ("the guard stepped in once (one evaluation repeated)", run({"guard": ("one evaluation repeated",)}), run()),
        ("this run only recorded", nothing(reasons.NOT_ASKED), run(dense={reasons.NOT_ASKED: 400})),
        ("no error was sampled: set guard to on", run({"error": everywhere(None)}), run()),
        ("numbers of the budget count with its preset custom", run(density=0.8, budget="faithful"), run(density=0.8)),
        (
            "numbers of the budget count with its preset custom; this run had auto (few_step)",
            run(density=0.8, budget="auto (few_step)"),
            run(plan_share=0.4, budget="auto (few_step)"),
        ),
    ],
)
def test_a_sentence_is_said_where_it_holds_and_only_there(expected, does, does_not):
    assert any(expected in sentence for sentence in advice(does)), advice(does)
    assert not any(expected in sentence for sentence in advice(does_not))


@pytest.mark.parametrize(
    ("densities", "dense", "expected"),
    [
        ((0.7, 0.6, 0.3, 0.2), {}, "layers 0-1 never go below 0.6: list them as dense (dense_blocks 0-1)"),
        ((0.2, 0.8, 0.3, 0.9), {}, "layers 1, 3 never go below 0.6: list them as dense (dense_blocks 1, 3)"),
        (
            (1.0, 0.8, 0.3, 0.2),
            {reasons.DENSE_BLOCK: 9},
            "layer 1 never goes below 0.6: list it as dense (dense_blocks 0-1)",
        ),
        ((1.0, 0.8, 0.3, 0.2), {}, "layer 1 never goes below 0.6: list it as dense (dense_blocks 1)"),
        ((0.59, 0.5, 0.3, 0.2), {}, None),
        # All alike: no layer stands out; the budget is to be lowered.
        ((0.7, 0.8, 0.7, 0.9), {}, None),
        # Listed already.
        ((1.0, 0.5, 0.3, 0.2), {reasons.DENSE_BLOCK: 9}, None),
    ],
)
def test_layers_that_stay_dense_anyway(densities, dense, expected):
    assert advice(run(layers(*densities), dense=dense)) == ([expected] if expected else [])


def test_dense_steps_do_not_count_as_density_of_a_layer():
    record = {"steps": steps(WINDOW, *[None] * 9), "density": ((0.7, *[0.2] * 9), (0.2, *[0.7] * 9))}
    assert advice(run(record)) == ["layer 1 never goes below 0.6: list it as dense (dense_blocks 1)"]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            steps(WINDOW, WINDOW, None, None, slow=4.0, fast=2.0),
            "one dense step costs 33 % of the run, the 2 at its start together 67 %: try dense_first 0.1",
        ),
        (
            steps(*[WINDOW] * 4, *[None] * 16, slow=4.0, fast=1.0),
            "one dense step costs 12 % of the run, the 4 at its start together 50 %: try dense_first 0.07",
        ),
        (
            steps(None, None, WINDOW, slow=4.0, fast=3.0),
            "one dense step costs 40 % of the run: try dense_last 0",
        ),
        # The first step is never given away unasked.
        (
            steps(WINDOW, None, None, None, slow=4.0, fast=2.0),
            "one dense step costs 40 % of the run. It fixes the composition: dense_first 0 makes it sparse too, and "
            "the take may change",
        ),
        # Not by the budget's window.
        (steps(reasons.OUT_OF_MEMORY, reasons.OUT_OF_MEMORY, None, None, slow=4.0, fast=2.0), None),
        # Cheap enough.
        (steps(WINDOW, WINDOW, *[None] * 18, slow=2.0, fast=1.0), None),
        # Sparse steps are no faster: fewer dense ones bring nothing.
        (steps(WINDOW, WINDOW, None, None, slow=2.0, fast=2.0), None),
        (steps(WINDOW, WINDOW, WINDOW), None),
    ],
)
def test_dense_steps_that_cost_much(schedule, expected):
    columns = len(schedule)
    record = {
        "steps": schedule,
        "density": everywhere(0.3, columns=columns),
        "error": everywhere(0.05, columns=columns),
    }
    assert advice(run(record)) == ([expected] if expected else [])


@given(st.integers(2, 20), st.integers(1, 40), st.booleans())
def test_fewer_dense_steps_are_fewer_and_the_first_stays(dense, sparse, at_end):
    """With the budget that was advised, on evenly spaced steps."""
    schedule = (*[WINDOW] * dense, *[None] * sparse)
    name = "dense_last" if at_end else "dense_first"
    record = {"steps": steps(*(schedule[::-1] if at_end else schedule), slow=100.0, fast=1.0)}
    record |= {"density": everywhere(0.3, columns=len(schedule)), "error": everywhere(0.05, columns=len(schedule))}
    (sentence,) = advice(run(record))
    value = float(re.search(rf"try {name} ([\d.]+)$", sentence)[1])
    budget = Budget(**{"dense_first": 0.0, "dense_last": 0.0, name: value})
    window = SigmaWindow.of(budget, lambda percent: 1 - percent)
    kept = sum(1 - i / len(schedule) not in window for i in range(len(schedule)))
    assert (0 if at_end else 1) <= kept < dense


def test_several_runs_are_named():
    runs = [("High noise", run(density=0.8)), ("Low noise", run())]
    assert [sentence.split(":")[0] for sentence in all_advice(runs)] == ["High noise"]
    assert all_advice(runs[:1]) == advice(runs[0][1])


fraction = st.floats(0, 1)
value = st.none() | st.floats(0, 2) | st.sampled_from([math.nan, math.inf])
reason = st.sampled_from([value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)])


@st.composite
def summaries(draw):
    columns, rows = draw(st.integers(0, 6)), draw(st.integers(0, 5))
    schedule = tuple(
        Step(i, draw(fraction), 1, draw(st.floats(0, 10)), draw(st.none() | reason)) for i in range(columns)
    )

    def grid(values):
        # Some runs are of one kind throughout: an average over random cells would hardly ever be extreme.
        one = draw(st.none() | values)
        return tuple(tuple(one or draw(values) for _ in range(columns)) for _ in range(rows))

    guard = tuple(draw(st.sets(st.just("raised"))))
    timeline = Timeline(schedule, grid(fraction), grid(value), grid(value), guard=guard)
    return RunSummary(
        draw(st.sampled_from(list(PATTERNS))),
        "Model",
        draw(st.sampled_from(["custom", "faithful", "auto (few_step)"])),
        sparse=draw(st.dictionaries(st.just("triton"), st.integers(1, 99))),
        dense=draw(st.dictionaries(reason, st.integers(1, 99))),
        density=draw(fraction),
        capped=draw(fraction),
        plan_share=draw(fraction),
        timeline=timeline,
    )


@settings(max_examples=300)
@given(summaries())
def test_advice_never_contradicts_itself(summary):
    sentences = advice(summary)
    # "raise it" of the sentence on max_density is said of max_density.
    text = "\n".join(sentence.replace("raise it", "raise max_density") for sentence in sentences)
    raised, lowered = (set(re.findall(rf"{verb} (top_p|max_density)", text)) for verb in ("raise", "lower"))
    assert not (raised and lowered), text
    assert len(raised | lowered) <= 1, text
    assert len(set(sentences)) == len(sentences)
    assert "nan" not in text and "inf" not in text
    if not summary.sparse_calls:
        assert not raised - set(re.findall(r"guard.*raise (\w+)", text)) and not lowered
    for blocks in re.findall(r"dense_blocks ([\d, -]+)\)", text):
        assert parse_blocks(blocks) < set(range(len(summary.timeline.density)))


def test_the_contradictions_that_could_be():
    """Dense and wrong all the same, with a cap that decides, and a guard that had to act."""
    torn = run({"error": everywhere(0.3)}, density=0.9)
    assert [s for s in advice(torn) if "lower" in s] == []
    capped = run({"error": everywhere(0.3)}, capped=0.9)
    assert advice(capped)[0].endswith("raise max_density")
    guarded = run({"error": everywhere(0.01), "guard": ("raised",)}, density=0.9)
    assert [s for s in advice(guarded) if "lower" in s] == []
    cut = run({"error": everywhere(0.01)}, density=0.8, capped=0.9)
    assert [s.rsplit(", ", 1)[-1] for s in advice(cut)] == ["lower max_density", "lower max_density"]
