"""Two clips beside each other, against scikit-image's definitions."""

import math
import sys

import numpy as np
import pytest
import torch
from skimage import metrics as oracle

from dit_accel.accel.report import comparison as module
from dit_accel.accel.report.comparison import compare, side_by_side
from dit_accel.accel.report.curves import Curve
from dit_accel.tests.support.closeness import assert_close


@pytest.fixture(scope="module")
def clips():
    """Seven frames of 40 x 24 pixels; the test is further from the reference with every frame."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(7, 3, 6, 8, generator=generator), (24, 40), mode="bicubic")
    reference = smooth.clamp(0, 1).movedim(1, -1)
    noise = torch.randn(reference.shape, generator=generator) * torch.linspace(0.01, 0.2, 7).view(-1, 1, 1, 1)
    return reference, (reference + noise).clamp(0, 1)


@pytest.fixture(scope="module")
def found(clips):
    return compare(*clips)


def test_psnr_and_ssim_of_every_frame(clips, found):
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    frames = [(a.double().numpy(), b.double().numpy()) for a, b in zip(*clips, strict=True)]
    psnrs = [oracle.peak_signal_noise_ratio(a, b, data_range=1) for a, b in frames]
    ssims = [oracle.structural_similarity(a, b, channel_axis=-1, **settings) for a, b in frames]
    assert found.psnrs == pytest.approx(psnrs, abs=1e-4)
    assert found.ssims == pytest.approx(ssims, abs=1e-4)
    assert found.psnr == pytest.approx(np.mean(psnrs), abs=1e-4)
    assert found.ssim == pytest.approx(np.mean(ssims), abs=1e-4)
    assert psnrs[0] > psnrs[-1] + 10 and ssims[0] > ssims[-1] + 0.1


def test_psnr_is_korniass(clips, found):
    from kornia.metrics import psnr

    assert found.psnrs == pytest.approx([psnr(a, b, 1.0).item() for a, b in zip(*clips, strict=True)], abs=1e-3)


def test_flicker_is_the_error_of_the_change(clips, found):
    reference, test = (clip.double().numpy() for clip in clips)
    changes = np.diff(test, axis=0) - np.diff(reference, axis=0)
    assert found.flicker == pytest.approx(np.sqrt(np.mean(changes**2)), rel=1e-5)
    tinted = compare(clips[0] * 0.5, clips[0] * 0.5 + 0.1)
    assert tinted.flicker < 1e-7 and tinted.psnr == pytest.approx(20, abs=1e-3)
    blinking = clips[0] * 0.5
    blinking[::2] += 0.1
    assert compare(clips[0] * 0.5, blinking).flicker == pytest.approx(0.1, abs=1e-6)


def test_the_text_names_the_worst_frame_and_the_gain(found):
    assert f"PSNR: {found.psnr:.2f} dB (mean), lowest {found.psnrs[6]:.2f} in frame 6" in found.text()
    worst = found.ssims.index(min(found.ssims))
    assert f"SSIM: {found.ssim:.4f} (mean), lowest {found.ssims[worst]:.4f} in frame {worst}" in found.text()
    assert f"7 frames; side by side: reference, test, difference x {found.gain}" in found.text()
    assert f"flicker: {found.flicker:.5f}" in found.text()


def test_identical_clips(clips):
    same = compare(clips[0], clips[0].clone())
    assert (same.psnr, same.flicker) == (math.inf, 0.0)
    assert same.ssim == pytest.approx(1, abs=1e-6)
    assert "infinite, the clips are identical" in same.text() and "no difference" in same.text()
    assert same.plot().size == compare(*clips).plot().size


def test_identical_frames_are_left_out_of_the_mean_and_counted(clips, found):
    test = clips[1].clone()
    test[2] = clips[0][2]
    partly = compare(clips[0], test)
    assert partly.psnr == pytest.approx(np.mean([p for i, p in enumerate(found.psnrs) if i != 2]), abs=1e-4)
    assert "identical frames, left out of the mean: 1" in partly.text()


def test_one_frame_cannot_flicker(clips):
    one = compare(clips[0][:1], clips[1][:1])
    assert one.flicker == 0 and "one frame has nothing to flicker" in one.text() and "1 frame;" in one.text()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda clip: clip[:5], "5 frames of 40 x 24 pixels with 3 channels"),
        (lambda clip: clip[:, :20], "7 frames of 40 x 20 pixels with 3 channels"),
        (lambda clip: clip[..., :1], "7 frames of 40 x 24 pixels with 1 channels"),
    ],
)
def test_clips_that_differ_are_refused_with_both_named(clips, change, named):
    with pytest.raises(ValueError) as refusal:
        compare(clips[0], change(clips[1]))
    assert "reference has 7 frames of 40 x 24 pixels with 3 channels" in str(refusal.value)
    assert f"test has {named}" in str(refusal.value)


def test_frames_smaller_than_the_window_are_refused(clips):
    small = clips[0][:, :10]
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, the window of SSIM, found 40 x 10"):
        compare(small, small)
    enough = clips[0][:, :11, :11]
    assert compare(enough, enough).ssim == pytest.approx(1, abs=1e-6)


BROKEN = {"nan": math.nan, "inf": math.inf, "minus inf": -math.inf, "both": (math.nan, math.inf), "huge": 1e30}


@pytest.mark.parametrize("value", BROKEN.values(), ids=BROKEN)
def test_frames_that_are_not_finite_are_counted_and_the_rest_is_compared(clips, found, value):
    reference, test = clips[0].clone(), clips[1].clone()
    test[2, 3, :2, 0] = reference[4, 0, :2, 1] = test[4, 1, :2, 1] = torch.tensor(value)
    partly = compare(reference, test)
    rest = [0, 1, 3, 5, 6]
    for values, whole in ((partly.psnrs, found.psnrs), (partly.ssims, found.ssims)):
        assert [values[frame] for frame in rest] == [whole[frame] for frame in rest]
        assert math.isnan(values[2]) and math.isnan(values[4])
    assert partly.psnr == pytest.approx(np.mean([found.psnrs[frame] for frame in rest]))
    assert partly.ssim == pytest.approx(np.mean([found.ssims[frame] for frame in rest]))
    # Only frames that follow one another flicker.
    pairs = [compare(*(clip[frame : frame + 2] for clip in clips)).flicker for frame in (0, 5)]
    assert partly.flicker == pytest.approx(np.sqrt(np.mean(np.square(pairs))))
    assert "not finite: 2 of 7 frames, left out of all numbers (reference: 4; test: 2, 4)" in partly.text()
    assert "in frame 6" in partly.text().splitlines()[0]
    assert partly.plot().size == found.plot().size

    picture = side_by_side(reference, test, partly.gain)
    assert picture.isfinite().all()
    assert (picture[2, 3, 80:82, 0] == 1).all(), "the difference there is not shown"
    assert torch.equal(picture[rest], side_by_side(*clips, partly.gain)[rest])


def test_finite_frames_that_are_identical_make_no_identical_clips(clips):
    test = clips[0].clone()
    test[1] = math.nan
    partly = compare(clips[0], test)
    assert partly.psnr == math.inf and "the clips are identical" not in partly.text()
    assert "infinite, all frames that are finite (6) are identical" in partly.text()
    psnr, _ = partly.curves()
    assert psnr.empty == "infinite, all frames that are finite (6) are identical"


def test_clips_without_a_common_finite_frame_are_refused_with_both_counts(clips):
    reference, test = clips[0].clone(), clips[1].clone()
    reference[:3], test[2:] = math.nan, math.inf
    with pytest.raises(ValueError, match="found 3 of 7 frames of reference and 5 of test that are not"):
        compare(reference, test)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda clip: clip[:0], "0 frames of 40 x 24 pixels with 3 channels"),
        (lambda clip: clip[..., :0], "7 frames of 40 x 24 pixels with 0 channels"),
        (lambda clip: clip[0], r"reference: .* found \[24, 40, 3\] of float32"),
        (lambda clip: clip[None], r"reference: .* found \[1, 7, 24, 40, 3\] of float32"),
        (lambda clip: (clip * 255).byte(), r"reference: .* found \[7, 24, 40, 3\] of uint8"),
        (lambda clip: clip > 0.5, r"reference: .* found \[7, 24, 40, 3\] of bool"),
    ],
    ids=["no frames", "no channels", "one picture", "a batch of clips", "bytes", "masks"],
)
def test_what_is_no_clip_is_refused_by_name(clips, change, found):
    with pytest.raises(ValueError, match=found):
        compare(change(clips[0]), change(clips[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_point_type_is_compared(clips, dtype):
    reference, test = (clip.to(dtype) for clip in clips)
    assert compare(reference, test).psnrs == compare(reference.float(), test.float()).psnrs
    assert side_by_side(reference, test, 1).dtype == torch.float32


def test_a_missing_kornia_is_said_with_the_remedy(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.metrics", None)
    with pytest.raises(ImportError, match=r"SSIM needs kornia.*-m pip install kornia"):
        compare(*clips)


def test_side_by_side(clips, found):
    picture = side_by_side(*clips, found.gain)
    assert picture.shape == (7, 24, 120, 3) and picture.dtype == torch.float32
    a, b, difference = picture.split(40, dim=2)
    assert torch.equal(a, clips[0]) and torch.equal(b, clips[1])
    assert_close(difference, ((clips[1] - clips[0]).abs() * found.gain).clamp(0, 1))
    # Typically about a quarter of full scale.
    typical = (clips[1] - clips[0]).square().mean().sqrt().item() * found.gain
    assert 0.125 <= typical <= 0.25
    with_alpha = torch.cat([clips[0], torch.ones(7, 24, 40, 1)], dim=-1)
    assert side_by_side(with_alpha, with_alpha, 1).shape == (7, 24, 120, 3)


def test_a_clip_is_worked_on_frame_by_frame(clips, monkeypatch):
    """What is made of more than a frame would need memory in proportion to the clip."""
    seen, ticks = [], []
    original = module.frame_ssim
    monkeypatch.setattr(module, "frame_ssim", lambda a, b: seen.append(a.numel()) or original(a, b))
    monkeypatch.setattr(module, "_mean_square", lambda x: seen.append(x.numel()) or 0.1)
    compare(*clips, tick=lambda: ticks.append(1))
    assert set(seen) == {24 * 40 * 3} and len(ticks) == 7


def test_the_plot_shows_every_frame_at_its_height():
    curve = Curve("PSNR", (30.0, 40.0, math.inf, 35.0), (0, 114, 178), least_span=1.0)
    low, high = curve.limits()
    assert low < 30 and high > 40
    picture = np.asarray(curve.draw(800, 200))
    blue = np.abs(picture.astype(int) - (0, 114, 178)).sum(-1) < 30
    columns = np.flatnonzero(blue.any(0))
    assert columns.size
    heights = {}
    for frame in range(4):
        middle = round(curve.x(frame, 800))
        rows = np.flatnonzero(blue[:, middle])
        heights[frame] = rows.mean() if rows.size else None
    assert heights[2] is None
    assert heights[1] < heights[3] < heights[0]
    assert heights[3] == pytest.approx((heights[0] + heights[1]) / 2, abs=2)


@pytest.mark.parametrize("values", [(1.0, 1.0), (0.9999, 1.0), (math.inf,), (0.5,)])
def test_the_axis_of_a_flat_line_is_no_magnifying_glass(values):
    low, high = Curve("SSIM", values, (0, 0, 0), least_span=0.01, top=1.0).limits()
    assert high - low >= 0.01
    assert all(low < value < high for value in values if math.isfinite(value))
