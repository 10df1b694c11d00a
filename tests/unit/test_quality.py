"""The quality bench: equal densities, true mass, and a table that says what was measured."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch

from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.plan import BlockOrder, SparsePlan
from dit_accel.accel.bench.density import LEAST
from dit_accel.accel.bench.inputs import Inputs, captured_inputs
from dit_accel.tests.bench import quality
from dit_accel.tests.bench.__main__ import main
from dit_accel.tests.bench.commands import quality as bench_quality
from dit_accel.tests.bench.quality import SOURCES, judge, kept_mass, sol_density

CAPTURE = Path(__file__).resolve().parents[1] / "golden" / "small_capture.safetensors"


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return captured_inputs(CAPTURE)[2]


@pytest.fixture(scope="module")
def rows(inputs):
    return judge(inputs, [0.3, 0.6], device="cpu", backend="reference")


def test_every_pattern_and_token_order_is_a_row(rows):
    names = [source.name for source in SOURCES]
    assert {"svg2", "svg_ear", "svg1", "radial", "window cube", "pooled raster", "pooled morton"} < set(names)
    assert {row["source"] for row in rows} == set(names)


def test_densities_are_equal(rows):
    for row in rows:
        assert LEAST * row["asked_density"] <= row["density"] <= row["asked_density"] + 1e-6


def test_errors_shrink_with_density_and_mass_grows(rows):
    table = {(row["source"], row["asked_density"], row["tail"]): row for row in rows}
    for source in SOURCES:
        less, more = (table[source.name, density, False] for density in (0.3, 0.6))
        assert 0 < more["error"] < less["error"] < 1.5
        assert 0.2 < less["mass"] < more["mass"] < 1


def test_a_density_that_a_pattern_cannot_reach_has_no_row(inputs):
    """svg1 always sees the first frame, a fifth of this clip."""
    assert judge(inputs, [0.05], [quality.Source("svg1")], device="cpu", backend="reference") == []


def test_kept_mass_of_a_known_map():
    """Equal scores: the mass is the kept share of the keys. The planner's order must not matter."""
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).int()[None]
    index = torch.zeros(1, 1, dtype=torch.int32)
    blocks = BlockOrder(order, torch.tensor([[0, 2, 8]], dtype=torch.int32), index)
    keep = torch.tensor([[[[True, False], [True, True]]]])
    q = torch.zeros(1, 1, 8, 64)
    assert kept_mass(q, q, SparsePlan(blocks, blocks, keep), 1.0) == pytest.approx((2 * 0.25 + 6) / 8)
    # All attention goes to the second block's keys: the first query block sees nothing of it.
    k = q.clone()
    k[:, :, order[0, 2:].long(), 0] = 1000
    q = q + 1
    assert kept_mass(q, k, SparsePlan(blocks, blocks, keep), 1.0) == pytest.approx(6 / 8)


def test_sol_density_counts_the_diagonal_and_the_ragged_last_block():
    q = torch.randn(1, 2, 200, 64, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([64.0, 64, 64, 8])
    band = (torch.arange(4)[:, None] - torch.arange(4)).abs() <= 1
    assert sol_density(q, q, 1e9) == pytest.approx(float(sizes @ band.float() @ sizes) / 200**2)
    assert sol_density(q, q, -1e9) == pytest.approx(1)
    assert sol_density(q, q, 1.0) <= sol_density(q, q, 0.0)


def test_command_writes_rows_and_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(quality, "sol_attn_problem", lambda head_dim: "it is not installed")
    path = tmp_path / "rows.json"
    arguments = ["--capture", str(CAPTURE), "--density", "0.4", "--pattern", "pooled", "--json", str(path)]
    assert main(["quality", *arguments]) == 0
    text = capsys.readouterr().out
    assert (
        "pooled raster" in text
        and "(1.00)" in text
        and "mass at 0.4" in text
        and "No row for sol_attn: it is not installed" in text
    )
    report = json.loads(path.read_text("utf-8"))
    assert report["machine"]["torch"] == torch.__version__
    assert {row["tail"] for row in report["rows"]} == {True, False}
    assert {row["source"] for row in report["rows"]} == {"pooled cube", "pooled raster", "pooled morton"}
    assert all(row["capture"] == CAPTURE.name and row["inputs_sha256"] for row in report["rows"])


def test_a_mean_over_fewer_calls_is_not_shown():
    row = {"source": "a", "tail": False, "asked_density": 0.3}
    both = [{**row, "inputs_sha256": "x", "error": 0.1}, {**row, "inputs_sha256": "y", "error": 0.3}]
    assert bench_quality.mean_error(both, "a", False, 0.3) == pytest.approx(0.2)
    both[1]["source"] = "b"
    assert bench_quality.mean_error(both, "a", False, 0.3) is None


def test_calls_that_a_tail_makes_worse_are_named():
    row = {"source": "svg2", "asked_density": 0.3, "capture": "c", "call": "block 1"}
    better = [{**row, "tail": False, "error": 0.2}, {**row, "tail": True, "error": 0.1}]
    assert bench_quality.worse_with_tail(better) == []
    worse = [{**one, "call": "block 2", "error": 0.3 - one["error"]} for one in better]
    (line,) = bench_quality.worse_with_tail(better + worse)
    assert "svg2 at 0.3 in 1: c block 2 (0.1000 -> 0.2000)" in line


def test_an_unknown_pattern_is_named(capsys):
    assert main(["quality", "--capture", str(CAPTURE), "--pattern", "svg3"]) == 1
    assert "svg3" in capsys.readouterr().err


def test_a_file_that_is_no_capture_is_named(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    assert main(["quality", "--capture", str(path)]) == 1
    assert "x.safetensors" in capsys.readouterr().err


def test_sol_attn_is_asked_for_the_dial_that_its_rule_gives(inputs, monkeypatch):
    """A stand-in that computes dense attention in Sol-Attn's layout: the error is then that of the bench itself."""
    asked = []

    def dense(q, k, v, tau, tail):
        asked.append((q.shape, tau, tail))
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "comfy_kitchen", types.SimpleNamespace(sol_attn=dense))
    rows = quality.judge_sol_attn(inputs, [0.5], device="cpu")
    assert [row["tail"] for row in rows] == [False, True]
    assert all(0.3 < row["density"] <= 0.5 and row["error"] < 1e-5 for row in rows)
    assert {shape for shape, _, _ in asked} == {(1, 560, 1, 128)}
    assert all(sol_density(inputs.q, inputs.k, tau) == row["density"] for row in rows for _, tau, _ in asked)


def test_sol_attn_takes_one_head_dim():
    assert "128" in quality.sol_attn_problem(64)


def test_layout_of_the_small_capture(inputs):
    assert inputs.layout == TokenLayout((5, 8, 14))
