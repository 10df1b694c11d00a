"""The bench of linears: every path's row, what was timed is what is judged, and nothing is measured that cannot run."""

import json

import pytest
import torch

from dit_accel.accel.quant import compute
from dit_accel.accel.quant.compute import FP8, INT8, W4A4, W4A16
from dit_accel.tests.bench import linear, linear_peers
from dit_accel.tests.bench.__main__ import main

TINY = ["linear", "--size", "128x128", "64x256", "--tokens", "32", "--repeats", "1"]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def layer():
    return linear.drawn_layer(128, 256, 64, torch.device("cpu"), 1)


def never(**fields):
    return False


def test_the_plain_layer_and_every_path_of_a_card(layer):
    rows = {row["path"]: row for row in linear.rows_of(layer, linear.PATHS, compute.Card("sm_89"), never)}
    assert set(rows) == {linear.PLAIN, W4A16, W4A4, INT8, FP8} and all(row["valid"] for row in rows.values())
    errors = {path: row["error"] for path, row in rows.items()}
    # A smoothed layer keeps loud channels at 4 bits; all of them are coarser than 16 bits.
    assert errors[linear.PLAIN] < 0.01 < errors[W4A16] < errors[W4A4] < 0.3
    assert errors[W4A16] <= errors[INT8] * 1.01 and errors[INT8] < errors[FP8] < errors[W4A4]
    flops = 2 * 128 * 256 * 64
    assert rows[W4A16]["flops"] == pytest.approx(flops / rows[W4A16]["ms"] * 1000)


def test_what_a_card_cannot_run_says_why(layer):
    rows = list(linear.rows_of(layer, [W4A4], compute.Card("sm_90"), lambda path: path == linear.PLAIN))
    assert [row["remark"] for row in rows] == ["skipped: no INT4 matrix instructions on sm_90 and newer"]


def test_torch_in_8_bits_beside_it(layer, monkeypatch):
    """fp8 with a stand-in for the product: torch has scales for rows on GPUs only."""

    def scaled_mm(left, right, left_steps, right_steps, out_dtype):
        assert left_steps.shape == (64, 1) and right_steps.shape == (1, 128) and right.stride(0) == 1
        return (left.float() @ right.float() * left_steps * right_steps).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    made, quantise = [], linear_peers.quantise_rows
    monkeypatch.setattr(
        linear_peers, "quantise_rows", lambda x, *rest, **more: made.append(x.shape) or quantise(x, *rest, **more)
    )
    plain, *rows = linear.rows_of(layer, linear.PEERS, compute.Card("sm_90"), never)
    assert [row["path"] for row in rows] == ["torch fp8", "torch int8"] and all(row["valid"] for row in rows)
    assert all(plain["error"] < row["error"] < 0.1 for row in rows)
    # The weight once for each; the inputs in every call that was timed, its warm-up included.
    runs = 1 + 2 * layer.repeats
    assert made.count((128, 256)) == 2 and made.count((64, 256)) >= 2 * runs


def test_the_error_is_that_of_the_timed_output(layer):
    wrong = linear.measure(layer, "x", lambda: torch.nn.functional.linear(layer.x, layer.plain) * 2)
    assert wrong["error"] == pytest.approx(1, abs=0.01)
    broken = linear.measure(layer, "x", lambda: layer.x @ layer.plain.T * float("nan"))
    assert not broken["valid"] and "not finite" in broken["remark"]


def test_one_failure_costs_one_row(layer):
    def fail():
        raise RuntimeError("no kernel image")

    row = linear.measure(layer, "x", fail)
    assert row["failed"] and row["remark"] == "failed: RuntimeError: no kernel image"


def test_the_command(tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert main([*TINY, "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert "skipped: runs on NVIDIA GPUs only" in text and "skipped: no GPU (device is cpu)" in text
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["out"], row["in"], row["path"]) for row in rows] == [
        (*size, path) for size in ((128, 128), (64, 256)) for path in (linear.PLAIN, *linear.EVERY)
    ]
    assert main([*TINY, "--json", str(path), "--resume"]) == 0
    assert json.loads(path.read_text("utf-8"))["rows"] == rows
    capsys.readouterr()
    assert main(["show", str(path)]) == 0
    assert "w4a16" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["128", "0x64", "64x100", "axb"])
def test_sizes_that_are_none(size, capsys):
    with pytest.raises(SystemExit):
        main(["linear", "--size", size])
    assert f"found {size}" in capsys.readouterr().err
