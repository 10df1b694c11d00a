"""The planning bench: every step is seen, the steps add up to the call, and nothing stays replaced."""

import json
import sys
import time
import types

import pytest
import torch

from dit_accel.accel.attention import clusters, static
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.planners import PATTERNS, pooled, svg2
from dit_accel.accel.bench import planning, steps
from dit_accel.accel.bench.attention import Planner
from dit_accel.accel.bench.case import Case
from dit_accel.accel.bench.inputs import drawn_inputs
from dit_accel.accel.cli.main import main

CPU = torch.device("cpu")
EXPECTED = {
    "svg2": {"clustering", "map", "orders", "rest"},
    "svg_ear": {"clustering", "map", "orders", "means", "errors", "tail", "rest"},
    "svg1": {"profile", "map", "orders", "means", "rest"},
    "radial": {"map", "orders", "means", "rest"},
    "window": {"map", "orders", "means", "rest"},
    "pooled": {"means", "map", "orders", "tail", "rest"},
}


@pytest.fixture(scope="module")
def case():
    return Case(drawn_inputs((2, 8, 8), heads=2, head_dim=64), device="cpu", backend="reference", repeats=1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_step_of_a_pattern_is_seen(case, pattern):
    planner = Planner(case, pattern, Budget())
    assert set(steps.step_medians(planner.first, 1, CPU)) == EXPECTED[pattern]


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


def test_a_slow_step_is_found_and_everything_is_put_back(case, monkeypatch):
    plain = svg2.select_blocks

    def slow(*arguments, **options):
        time.sleep(0.05)
        return plain(*arguments, **options)

    monkeypatch.setitem(steps.STEPS, slow, "map")
    monkeypatch.setattr(svg2, "select_blocks", slow)
    before = clusters.Clusters.block_order, pooled.block_order, static.prune
    found = steps.step_medians(Planner(case, "svg2", Budget()).first, 1, CPU)
    assert found["map"] > 50 and found["map"] == max(found.values())
    assert svg2.select_blocks is slow
    assert before == (clusters.Clusters.block_order, pooled.block_order, static.prune)


def test_flash_kmeans_gets_the_same_work(case, monkeypatch):
    def cluster(x, n_clusters, max_iters, tol, init_centroids):
        assert x.shape == (2, 128, 64) and max_iters == clusters.WARM_ITERATIONS and tol == 0
        found = clusters.kmeans_clusters(x[None], init_centroids[None], max_iters, backend="reference")
        return None, found.centroids[0] * 1.0, max_iters

    monkeypatch.setitem(sys.modules, "flash_kmeans", types.SimpleNamespace(batch_kmeans_Euclid=cluster))
    rows = [planning.clustering_row(case, name, run) for name, run in (("a", planning.ours), ("b", planning.peer))]
    assert rows[0]["inertia"] == pytest.approx(rows[1]["inertia"]) and 0.01 < rows[0]["inertia"] < 1
    start = planning.clustering_row(case, "c", lambda tokens, start, backend: lambda: start)
    assert start["inertia"] > rows[0]["inertia"]


def test_command_writes_rows_once_and_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "flash_kmeans", None)
    path = tmp_path / "rows.json"
    arguments = ["--drawn", "2x8x8", "--heads", "1", "--repeats", "1", "--pattern", "svg2", "--density", "0.5"]
    for _ in range(2):
        assert main(["bench", "planning", *arguments, "--json", str(path), "--resume"]) == 0
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["pattern"], row.get("call")) for row in rows] == [
        ("svg2", "first"),
        ("svg2", "later"),
        ("k-means", "later"),
        ("flash-kmeans", None),
    ]
    assert {"clustering", "map", "orders", "gathers"} < set(rows[0]["steps_ms"]) == set(rows[0]["steps_again_ms"])
    text = capsys.readouterr().out
    assert "share" in text and rows[3]["remark"] in text and rows[3]["remark"].startswith("skipped: ")
    capsys.readouterr()
    assert main(["bench", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    total = sum(rows[1]["steps_ms"].values())
    assert f"{total / rows[1]['dense_ms']:.1%}" in shown and "rows.json: CPU" in shown
