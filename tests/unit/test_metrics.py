"""PSNR and SSIM against scikit-image's."""

import math

import numpy as np
import pytest
import torch
from skimage import metrics as oracle

from dit_accel.accel.report.metrics import psnr, ssim
from dit_accel.accel.report.pictures import GAP, LABEL_WIDTH, contact_sheet, difference, to_image
from dit_accel.tests.support.closeness import assert_close


@pytest.fixture(scope="module")
def clips():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(3, 3, 6, 8, generator=generator), (24, 33), mode="bicubic")
    reference = smooth.clamp(0, 1)
    return reference, (reference + 0.1 * torch.randn(reference.shape, generator=generator)).clamp(0, 1)


def test_psnr(clips):
    a, b = (clip.double().numpy() for clip in clips)
    assert psnr(*clips) == pytest.approx(oracle.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-6)
    assert psnr(clips[0], clips[0]) == math.inf


def test_ssim(clips):
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [
        oracle.structural_similarity(x.numpy(), y.numpy(), channel_axis=0, **settings)
        for x, y in zip(*clips, strict=True)
    ]
    assert ssim(*clips) == pytest.approx(np.mean(expected), abs=1e-5)
    assert 0.2 < ssim(*clips) < 0.95
    assert ssim(clips[0], clips[0]) == pytest.approx(1)


def test_ssim_wants_clips_of_one_length(clips):
    with pytest.raises(ValueError):
        ssim(clips[0], clips[1][:2])


def test_contact_sheet_shows_every_clip_from_its_first_to_its_last_frame(clips):
    reference, other = clips
    sheet = contact_sheet({"dense": reference, "other": other}, columns=2)
    height, width = reference.shape[2:]
    assert sheet.size == (LABEL_WIDTH + 2 * (width + GAP), GAP + 2 * (height + GAP))
    right = LABEL_WIDTH + width + GAP
    below = GAP + height + GAP
    part = sheet.crop((right, below, right + width, below + height))
    assert np.array_equal(np.asarray(part), np.asarray(to_image(other[-1])))


def test_a_small_difference_is_amplified_until_it_shows(clips):
    reference = clips[0] * 0.5
    visible, gain = difference(reference, reference + 0.01)
    assert gain == 16
    assert_close(visible, torch.full_like(reference, 0.16), units=64)
    assert difference(reference, 1 - reference)[1] == 1
