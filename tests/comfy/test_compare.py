"""The node that compares two videos, with ComfyUI."""

import math

import pytest
import torch


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(3, 16, 20, 3, generator=generator)
    return reference, (reference + 0.1 * torch.randn(reference.shape, generator=generator)).clamp(0, 1)


def test_outputs_are_in_their_order_and_of_comfyuis_shapes(comfy, clips):
    from dit_accel.accel.report.comparison import compare
    from dit_accel.nodes.compare import DitAccelCompareVideos

    schema = DitAccelCompareVideos.define_schema()
    assert [entry.id for entry in schema.inputs] == ["reference", "test"]
    names = ["plot", "side_by_side", "text", "psnr", "ssim", "flicker"]
    assert [entry.display_name for entry in schema.outputs] == names
    assert [entry.io_type for entry in schema.outputs] == ["IMAGE", "IMAGE", "STRING", "FLOAT", "FLOAT", "FLOAT"]
    assert schema.is_output_node

    output = DitAccelCompareVideos.execute(*clips)
    plot, beside, text, psnr, ssim, flicker = output.result
    found = compare(*clips)
    assert (psnr, ssim, flicker) == (found.psnr, found.ssim, found.flicker)
    assert plot.shape[0] == 1 and plot.shape[-1] == 3 and plot.dtype == torch.float32
    # A picture with a line on white, in 0..1.
    assert 0.9 < plot.mean() < 1 and plot.amax() == 1
    assert beside.shape == (3, 16, 60, 3)
    assert output.ui.as_dict() == {"text": (text,)} and f"{psnr:.2f} dB" in text


def test_identical_videos(comfy, clips):
    from dit_accel.nodes.compare import DitAccelCompareVideos

    _, beside, text, psnr, _, flicker = DitAccelCompareVideos.execute(clips[0], clips[0]).result
    assert (psnr, flicker) == (math.inf, 0) and "identical" in text
    assert not beside[:, :, 40:].any()


def test_a_video_with_nan_is_compared_where_it_is_finite(comfy, clips):
    from dit_accel.nodes.compare import DitAccelCompareVideos

    test = clips[1].clone()
    test[1, 0, 0, 0] = math.nan
    plot, beside, text, psnr, ssim, flicker = DitAccelCompareVideos.execute(clips[0], test).result
    assert all(math.isfinite(number) for number in (psnr, ssim, flicker))
    assert plot.isfinite().all() and beside.isfinite().all()
    assert "not finite: 1 of 3 frames" in text


def test_videos_of_two_sizes_are_refused(comfy, clips):
    from dit_accel.nodes.compare import DitAccelCompareVideos

    with pytest.raises(ValueError, match=r"3 frames of 20 x 16 .* 2 frames of 20 x 16"):
        DitAccelCompareVideos.execute(clips[0], clips[1][:2])
