"""The video bench: what it asks for, what it refuses, and its medians."""

import json
from typing import ClassVar

import pytest
import torch

from dit_accel.accel.cli.demo_run import Result
from dit_accel.tests.bench.__main__ import main
from dit_accel.tests.bench.commands import video as bench_video

LOG = {"sparse": 6, "density": 0.31, "backend": "reference", "dense": {"dense_blocks": 2}}


class FakeSampler:
    """Frames that differ from dense ones the more, the less is kept."""

    asked: ClassVar[list] = []
    log: ClassVar[dict] = LOG

    def __init__(self, comfyui, base):
        self.asked.clear()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, name, pattern, budget, settings, *, warm):
        self.asked.append((pattern, budget.get("max_density"), settings["prompt"], settings["seed"]))
        frames = torch.full((5, 3, 32, 32), 0.5)
        if pattern:
            frames = frames + 0.1 * (1 - budget["max_density"])
        return Result(frames, torch.zeros(1), 1.0, self.log if pattern else None)

    def seconds(self, name, pattern, budget, settings):
        return 2.0 if pattern else 3.0


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr("dit_accel.accel.cli.demo_run.Sampler", FakeSampler)
    monkeypatch.setattr(bench_video, "need_comfyui", lambda: tmp_path)
    monkeypatch.setattr(bench_video, "kernel_problem", lambda dtype, head_dim: "no GPU")
    return FakeSampler


def test_every_seed_prompt_pattern_and_density_is_sampled(fake, tmp_path, capsys):
    path = tmp_path / "rows.json"
    arguments = ["--pattern", "svg2", "window", "--prompt", "bunny", "fox", "--seeds", "2", "--json", str(path)]
    assert main(["video", *arguments]) == 0
    assert len(fake.asked) == 2 * 2 * (1 + 2 * 2) == len(set(fake.asked))
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert len(rows) == 16
    # 0.1 * 0.7 and 0.1 * 0.85 off: 20 log10(1 / error).
    decibel = {row["asked_density"]: row["psnr_db"] for row in rows}
    assert decibel[0.3] == pytest.approx(23.1, abs=0.1) and decibel[0.15] == pytest.approx(21.4, abs=0.1)
    text = capsys.readouterr().out
    assert "23.1 / " in text and "21.4 / " in text and "in plain PyTorch" in text


def test_a_run_that_was_not_sparse_proves_nothing(fake, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fake, "log", {**LOG, "dense": {"no fast kernel: out of order": 1}})
    path = tmp_path / "rows.json"
    assert main(["video", "--pattern", "svg2", "--json", str(path)]) == 1
    assert "svg2: not every call in the window was sparse" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "unicorn"], "found unicorn"),
        (["--pattern", "sliding"], "found sliding"),
        (["--steps", "1"], "--steps: expected 2 or more"),
    ],
)
def test_bad_options_are_named(fake, capsys, arguments, words):
    assert main(["video", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_what_sparse_runs_gain(fake, tmp_path, capsys):
    path = tmp_path / "rows.json"
    arguments = ["--pattern", "tree", "--density", "0.3", "--seeds", "1", "--times", "--json", str(path)]
    assert main(["video", *arguments]) == 0
    (row,) = json.loads(path.read_text("utf-8"))["rows"]
    assert (row["seconds"], row["dense_seconds"]) == (2.0, 3.0)
    assert " / 1.50x" in capsys.readouterr().out
