"""Heads of several captured calls as one call: none is lost, doubled or mixed with another layout's."""

import json

import pytest
import torch

from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.bench import captures
from dit_accel.accel.bench.captures import Capture
from dit_accel.accel.bench.inputs import stacked_inputs
from dit_accel.tests.bench.__main__ import main

SMALL, LARGE = TokenLayout((2, 4, 8)), TokenLayout((2, 8, 8), prefix=3)


@pytest.fixture
def write(tmp_path):
    def write(name: str, layout: TokenLayout, calls: int, head_dim: int = 64):
        generator = torch.Generator().manual_seed(len(name))
        shape = (1, 2, layout.total, head_dim)
        found = [
            Capture(*(torch.randn(shape, generator=generator).half() for _ in "qkv"), layout, block, 0.5)
            for block in range(calls)
        ]
        path = tmp_path / f"{name}.safetensors"
        captures.write(path, found, {"model": {"file": "m.safetensors"}})
        return path, found

    return write


def test_heads_stand_side_by_side_in_their_order(write):
    (first, some), (second, others), (third, larger) = write("a", SMALL, 2), write("bb", SMALL, 1), write("c", LARGE, 3)
    small, large = stacked_inputs([first, third, second], 5)
    assert small.layout == SMALL and large.layout == LARGE
    assert small.source == "5 heads of m.safetensors"
    for name in range(3):
        assert torch.equal(small[name], torch.cat([one[name] for one in (*some, *others)], 1)[:, :5])
        assert torch.equal(large[name], torch.cat([one[name] for one in larger], 1)[:, :5])
    assert small.sha256 == captures.sha256(*small[:3]) != large.sha256


@pytest.mark.parametrize("subject", ["attention", "planning"])
def test_the_commands_measure_the_one_call(write, tmp_path, capsys, subject):
    path, _ = write("a", SMALL, 2)
    rows = tmp_path / "rows.json"
    options = ["--pattern", "window", "--density", "0.5", "--repeats", "1", "--json", str(rows)]
    options += ["--no-baselines"] if subject == "attention" else []
    assert main([subject, "--capture", str(path), "--stack-heads", "3", *options]) == 0
    assert "3 heads of m.safetensors" in capsys.readouterr().out
    found = json.loads(rows.read_text("utf-8"))["rows"]
    assert {(row["heads"], row["inputs_sha256"]) for row in found} == {(3, stacked_inputs([path], 3)[0].sha256)}


@pytest.mark.parametrize("heads", ["5", "2"])
def test_too_few_heads_of_one_size_are_refused(write, capsys, heads):
    paths = [str(write(name, layout, 2)[0]) for name, layout in (("a", SMALL), ("b", LARGE))]
    paths.append(str(write("c", SMALL, 1, head_dim=128)[0]))
    assert main(["attention", "--capture", *paths, "--stack-heads", heads]) == 1
    expected = {
        "5": "--stack-heads: expected captures that have 5 heads of 2x4x8 tokens together, found 4",
        "2": "--capture: expected files of one head dimension, found [64, 128]",
    }
    assert expected[heads] in capsys.readouterr().err


def test_it_needs_captures(capsys):
    assert main(["attention", "--drawn", "2x4x4", "--stack-heads", "4"]) == 1
    assert "--stack-heads: expected with --capture" in capsys.readouterr().err
