"""Token layouts that a family row must refuse."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.comfy.families import FAMILIES, ForwardInputs, family_of
from dit_accel.tests.support.family_table import family_table


def test_wan_refuses_text_as_long_as_the_video():
    """Its cross-attention could not be told from its self-attention."""
    wan = FAMILIES["comfy.ldm.wan.model.WanModel"]
    model = SimpleNamespace(patch_size=(1, 2, 2), ref_conv=None)
    latent = torch.empty(1, 16, 2, 16, 32)
    assert wan.layout(model, ForwardInputs(latent, torch.empty(1, 256, 8), {})) == reasons.AMBIGUOUS
    assert wan.layout(model, ForwardInputs(latent, torch.empty(1, 255, 8), {})) == TokenLayout((2, 8, 16))


WANS = [path for path, row in FAMILIES.items() if ".wan." in path and "runs dense" not in row.note]


@pytest.mark.parametrize("path", WANS, ids=lambda path: path.rpartition(".")[2])
def test_wan_refuses_vision_tokens_as_many_as_the_videos(path):
    """Its image cross-attention could not be told from its self-attention: of the first and last frame 2 x 257."""
    model = SimpleNamespace(patch_size=(1, 2, 2), ref_conv=None)
    latent, text = torch.empty(1, 16, 2, 2, 2 * 257), torch.empty(1, 20, 8)

    def layout(**tokens):
        images = {name: torch.empty(1, count, 1280) for name, count in tokens.items()}
        return FAMILIES[path].layout(model, ForwardInputs(latent, text, images))

    assert layout(clip_fea=514) == reasons.AMBIGUOUS
    assert layout(clip_fea=257, clip_fea_ref=257) == reasons.AMBIGUOUS
    assert layout(clip_fea=257) == layout() == TokenLayout((2, 1, 257))


def test_ltx2_refuses_audio_as_long_as_the_video():
    """The attention between its two streams could not be told from the video's self-attention."""
    ltx = FAMILIES["comfy.ldm.lightricks.av_model.LTXAVModel"]

    def layout(frames, **changes):
        shapes = [(1, 128, 2, 8, 16), (1, 8, frames, 16)]
        return ltx.layout(None, ForwardInputs(None, torch.empty(1, 20, 8), {"latent_shapes": shapes, **changes}))

    assert layout(256) == reasons.AMBIGUOUS
    assert layout(250, ref_audio={"tokens": torch.empty(1, 6, 128)}) == reasons.AMBIGUOUS
    assert layout(256, ref_audio={"tokens": torch.empty(1, 6, 128)}) == TokenLayout((2, 8, 16))


def test_hunyuan_image_stays_dense():
    row = FAMILIES["comfy.ldm.hunyuan_video.model.HunyuanVideo"]
    model = SimpleNamespace(patch_size=(2, 2))
    inputs = ForwardInputs(torch.empty(1, 64, 32, 32), torch.empty(1, 20, 8), {})
    assert row.layout(model, inputs) == reasons.IMAGE


def test_an_unknown_model_has_no_row():
    assert family_of(torch.nn.Linear(1, 1)) is None


def test_kandinsky_refuses_images_and_text_as_long_as_the_video():
    row = FAMILIES["comfy.ldm.kandinsky5.model.Kandinsky5"]
    model = SimpleNamespace(patch_size=(1, 2, 2))
    text = torch.empty(1, 256, 8)
    assert row.layout(model, ForwardInputs(torch.empty(1, 16, 32, 32), text, {})) == reasons.IMAGE
    assert row.layout(model, ForwardInputs(torch.empty(1, 16, 2, 16, 32), text, {})) == reasons.AMBIGUOUS


def test_the_readme_has_the_table_of_families():
    assert family_table() in (Path(__file__).parents[2] / "README.md").read_text("utf-8")
