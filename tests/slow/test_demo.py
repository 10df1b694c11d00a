"""The README's first command, whole and as it is."""

import json

import pytest

from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.cli.main import main
from dit_accel.accel.headless.clip import find_clip, read_frames

pytestmark = pytest.mark.slow

BLOCKS, STEPS = 6, 12


@pytest.fixture(scope="module")
def demo(comfyui, tmp_path_factory):
    """The folder that the command leaves, and what it prints."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("demo")
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(["demo", "--output", str(folder)]) == 0
    return folder, text.getvalue()


@pytest.fixture(scope="module")
def report(demo):
    return json.loads((demo[0] / "report.json").read_text("utf-8"))


def test_every_pattern_ran_sparsely(report):
    assert list(report["patterns"]) == list(PATTERNS)
    assert report["video_tokens"] == 9 * 12 * 20
    for row in report["patterns"].values():
        assert row["sparse_share"] == 1
        # Block 0 and the first fifth of the schedule stay dense: two or three steps, by the noise they leave.
        steps_in_window = STEPS - row["dense_calls"]["outside the budget's window"] / BLOCKS
        assert steps_in_window in (9, 10)
        assert row["sparse_calls"] == (BLOCKS - 1) * steps_in_window
        assert row["dense_calls"]["dense_blocks"] == steps_in_window
        assert row["backend"] in ("triton", "torch")


def test_the_numbers_are_those_of_a_faithful_result(report):
    for row in report["patterns"].values():
        # top_p 0.9 with a floor of 5 % of the blocks.
        assert 0.05 < row["density"] < 0.9
        assert 18 < row["psnr_db"] < 80
        assert 0.7 < row["ssim"] < 1
        assert not row["identical"] and row["finite"]


def test_what_is_printed_and_left(demo, report):
    folder, text = demo
    for name, row in report["patterns"].items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
        assert f"{row['density']:.3f}" in line and f"{row['psnr_db']:.1f}" in line
    # Nobody may take a CPU's times for the kernels'.
    on_cpu = any(row["backend"] == "torch" for row in report["patterns"].values())
    assert ("in plain PyTorch" in text) == on_cpu
    for name in ("dense.mp4", *(f"{pattern}.mp4" for pattern in PATTERNS), "contact_sheet.png"):
        assert (folder / name).stat().st_size > 5000


def test_the_clip_moves_as_much_as_the_real_one(demo):
    """Mean difference of successive frames, against the clip that the prompt was learned from."""
    av = pytest.importorskip("av")
    import numpy as np

    with av.open(str(demo[0] / "dense.mp4")) as clip:
        sampled = np.stack([frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]).astype(float)
    real = (read_frames(find_clip(), range(99), *sampled.shape[1:3]) * 255).numpy()

    def motion(frames):
        return np.abs(np.diff(frames, axis=0)).mean()

    assert len(sampled) == 33
    assert 0.5 < motion(sampled) / motion(real) < 2


SMALL = ["--frames", "17", "--width", "192", "--steps", "3"]


def test_the_budget_decides_the_density(comfyui, tmp_path):
    densities = {}
    for top_p in ("0.5", "0.8"):
        folder = tmp_path / top_p
        assert main(["demo", "--output", str(folder), "--top-p", top_p, "--prompt", "fox", *SMALL]) == 0
        report = json.loads((folder / "report.json").read_text("utf-8"))
        assert report["settings"]["prompt"] == "fox"
        densities[top_p] = [row["density"] for row in report["patterns"].values()]
    for less, more in zip(*densities.values(), strict=True):
        # Half of the mass never needs more than half of the blocks, give or take the size of one. At so few tokens
        # the forced first frame is most of what a static pattern keeps, so its density moves least.
        assert less < 0.6
        assert less < 0.95 * more


def test_demo_refuses_a_density_that_proves_nothing(comfyui, tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path), *SMALL, "--top-p", "1"]) == 1
    assert "above 0.9" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
