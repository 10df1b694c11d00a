"""Token layouts that a family row must refuse."""

from types import SimpleNamespace

import torch

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.comfy.families import FAMILIES, ForwardInputs, family_of


def test_wan_refuses_text_as_long_as_the_video():
    """Its cross-attention could not be told from its self-attention."""
    wan = FAMILIES["comfy.ldm.wan.model.WanModel"]
    model = SimpleNamespace(patch_size=(1, 2, 2), ref_conv=None)
    latent = torch.empty(1, 16, 2, 16, 32)
    assert wan.layout(model, ForwardInputs(latent, torch.empty(1, 256, 8), {})) == reasons.AMBIGUOUS
    assert wan.layout(model, ForwardInputs(latent, torch.empty(1, 255, 8), {})) == TokenLayout((2, 8, 16))


def test_hunyuan_image_stays_dense():
    row = FAMILIES["comfy.ldm.hunyuan_video.model.HunyuanVideo"]
    model = SimpleNamespace(patch_size=(2, 2))
    inputs = ForwardInputs(torch.empty(1, 64, 32, 32), torch.empty(1, 20, 8), {})
    assert row.layout(model, inputs) == reasons.IMAGE


def test_an_unknown_model_has_no_row():
    assert family_of(torch.nn.Linear(1, 1)) is None
