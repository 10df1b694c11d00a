"""The planning bench: every step is seen, the steps add up to the call, and nothing stays replaced."""

import contextlib
import json
import sys
import time
import types

import pytest
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.planners import PATTERNS, clusters, select
from dit_accel.accel.attention.planners.planning import Planning
from dit_accel.accel.attention.planners.steps import _listener, listening, step
from dit_accel.accel.bench.case import Case
from dit_accel.accel.bench.inputs import drawn_inputs
from dit_accel.accel.bench.pattern_row import Planner
from dit_accel.tests.bench import planning, steps
from dit_accel.tests.bench.__main__ import main
from dit_accel.tests.support import peers
from dit_accel.tests.support.closeness import assert_close, distance

CPU = torch.device("cpu")
# The step that each field of a pattern's Planning stands for.
STEPS = {"clusters": "clustering", "trees": "trees", "means": "means", "probe": "errors", "tail": "tail"}
# What else is seen of the patterns that we know.
ORDERS = ("svg2", "svg_ear", "svg1", "radial", "window", "pooled")
FURTHER = {**{name: {"orders"} for name in ORDERS}, "svg1": {"orders", "profile"}, "tree": {"weights"}}


@pytest.fixture(scope="module")
def case():
    return Case(drawn_inputs((2, 8, 8), heads=2, head_dim=64), device="cpu", backend="reference", repeats=1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_step_of_a_pattern_is_seen(case, pattern):
    """What the gate counts of it happens, and nothing that the gate does not count."""
    planner = Planner(case, pattern, Budget())
    seen = set(steps.step_medians(planner.first, 1, CPU))
    counted = {step for field, step in STEPS.items() if getattr(PATTERNS[pattern].planning, field)}
    assert set(STEPS) == set(Planning._fields)
    assert seen & set(STEPS.values()) == counted
    further = seen - counted
    assert further >= {"map", "rest"}
    assert pattern not in FURTHER or further == {"map", "rest", *FURTHER[pattern]}


def test_a_step_counts_where_it_is_innermost(monkeypatch):
    class Watch:
        def __init__(self, device):
            self.marks = 0

        def mark(self):
            self.marks += 1

        def laps(self):
            return list(range(1, self.marks + 1))

    monkeypatch.setattr(steps, "Stopwatch", Watch)
    watch = steps.StepWatch(CPU)
    with watch.step("outer"), watch.step("inner"):
        pass
    watch.stop()
    assert watch.milliseconds() == {"rest": 1000 + 5000, "outer": 2000 + 4000, "inner": 3000}


def test_a_slow_step_is_found_and_nobody_listens_afterwards(case, monkeypatch):
    plain = select.select_blocks

    def slow(*arguments, **options):
        time.sleep(0.05)
        return plain(*arguments, **options)

    monkeypatch.setattr(select, "select_blocks", slow)
    planner = Planner(case, "svg2", Budget())
    medians = steps.step_medians(planner.first, 1, CPU)
    assert medians["map"] > 50
    assert _listener.get() is None
    with pytest.raises(ZeroDivisionError), listening(lambda name: contextlib.nullcontext()):
        _ = 1 / 0
    assert _listener.get() is None


def test_a_step_that_fails_ends(case):
    watch = steps.StepWatch(CPU)
    with listening(watch.step):
        with pytest.raises(ZeroDivisionError), step("map"):
            _ = 1 / 0
        with step("tail"):
            pass
    watch.stop()
    assert set(watch.milliseconds()) == {"rest", "map", "tail"}


def flash_kmeans(monkeypatch):
    """The package with its kernels, whose front door is another function: one that it opens without them."""
    module = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "flash_kmeans", module(batch_kmeans_Euclid=None))
    kernels = module(batch_kmeans_Euclid=peers.batch_kmeans_euclid)
    monkeypatch.setitem(sys.modules, "flash_kmeans.kmeans_triton_impl", kernels)
    labels = module(euclid_assign_triton=peers.euclid_assign_triton)
    monkeypatch.setitem(sys.modules, "flash_kmeans.assign_euclid_triton", labels)


def test_flash_kmeans_does_the_same_work(case, monkeypatch):
    flash_kmeans(monkeypatch)
    start = clusters.sample_centroids(case.k, 8)
    # Nothing comes near the last one, so it stays empty.
    start[:, :, -1] = 100
    kept = start.clone()
    ours, theirs = (make(case.k, start, "reference")() for make in (planning.ours, planning.peer))
    assert_close(theirs, ours)
    assert torch.equal(start, kept) and torch.equal(theirs[:, :, -1], start[:, :, -1])
    once = clusters.kmeans_clusters(case.k, start, 1, backend="reference").centroids
    assert distance(once[:, :, :-1], ours[:, :, :-1]) > 1e-3
    labels, found = (make(case.k, start, "reference")() for make in (planning.our_labels, planning.peer_labels))
    assert torch.equal(labels, found) and len(labels.unique()) == 7


def test_clusterings_are_judged_by_what_they_returned(case, monkeypatch):
    flash_kmeans(monkeypatch)
    monkeypatch.setattr(planning, "version_of", lambda name: f"{name} 0.3.1")
    rows = {name: planning.clustering_row(case, name, *how) for name, how in planning.CLUSTERINGS.items()}
    whole, halves = ["k-means", "flash-kmeans"], ["k-means labels", "flash-kmeans labels"]
    assert rows[whole[0]]["inertia"] == pytest.approx(rows[whole[1]]["inertia"])
    assert rows[halves[0]]["inertia"] == pytest.approx(rows[halves[1]]["inertia"])
    assert 0.01 < rows[whole[0]]["inertia"] < rows[halves[0]]["inertia"] < 1.5
    assert [row["iterations"] for row in rows.values()] == [clusters.WARM_ITERATIONS, clusters.WARM_ITERATIONS, 0, 0]
    assert [row["version"] for row in rows.values()] == [None, "flash-kmeans 0.3.1"] * 2

    def wrong(tokens, start, backend):
        return lambda: torch.zeros(tokens.shape[:3], dtype=torch.int32)

    assert planning.clustering_row(case, "wrong labels", wrong, 0)["inertia"] > rows[halves[0]]["inertia"]


def test_flash_kmeans_without_its_kernels_is_not_measured(case, monkeypatch):
    flash_kmeans(monkeypatch)
    for module in ("kmeans_triton_impl", "assign_euclid_triton"):
        monkeypatch.setitem(sys.modules, f"flash_kmeans.{module}", None)
    for name in ("flash-kmeans", "flash-kmeans labels"):
        row = planning.clustering_row(case, name, *planning.CLUSTERINGS[name])
        assert row["remark"].startswith("skipped: ModuleNotFoundError: import of flash_kmeans.")
        assert "inertia" not in row


def test_command_writes_rows_once_and_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "flash_kmeans", None)
    path = tmp_path / "rows.json"
    arguments = ["--drawn", "2x8x8", "--heads", "1", "--repeats", "1", "--pattern", "svg2", "--density", "0.5"]
    for _ in range(2):
        assert main(["planning", *arguments, "--json", str(path), "--resume"]) == 0
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["pattern"], row.get("call")) for row in rows] == [
        ("svg2", "first"),
        ("svg2", "later"),
        ("k-means", "later"),
        ("flash-kmeans", None),
        ("k-means labels", "later"),
        ("flash-kmeans labels", None),
    ]
    assert {"clustering", "map", "orders", "gathers"} < set(rows[0]["steps_ms"]) == set(rows[0]["steps_again_ms"])
    text = capsys.readouterr().out
    assert "share" in text and rows[3]["remark"] in text and rows[3]["remark"].startswith("skipped: ")
    capsys.readouterr()
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    total = sum(rows[1]["steps_ms"].values())
    assert f"{total / rows[1]['dense_ms']:.1%}" in shown and "rows.json: CPU" in shown
