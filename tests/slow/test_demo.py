"""The README's first command, whole, at a small size."""

import json

import pytest

from dit_accel.accel.cli.main import main

pytestmark = pytest.mark.slow


def test_demo_runs_sparsely_in_a_real_comfyui(comfyui, tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path), "--frames", "5", "--steps", "2"]) == 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    # Three layers, two steps, no guidance.
    assert report["sparse_calls"] == 3 * 2
    assert 0.05 < report["density"] < 0.7
    assert 0 < report["relative_error"] < 0.2
    assert report["psnr_db"] > 25
    text = capsys.readouterr().out
    assert "random weights" in text
    # Nobody may take a CPU's times for the kernels'.
    assert ("show no speed-up" in text) == (report["backend"] == "reference")
    for name in ("dense.mp4", "sparse.mp4", "difference.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_demo_refuses_a_density_that_proves_nothing(comfyui, tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path), "--frames", "3", "--steps", "1", "--top-p", "1"]) == 1
    assert "above 0.7" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
