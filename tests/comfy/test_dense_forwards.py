"""Forwards that a family's row leaves dense as a whole."""

import dataclasses

import pytest
import torch

from dit_accel.accel.attention import reasons


@pytest.fixture
def assert_dense(tiny):
    def check(case, reason, positive=None, **kwargs):
        model = case.model()
        sparse = tiny.sparse(model, top_p=0.5, floor=0.0)
        conditions = {"positive": positive, "negative": positive}
        assert torch.equal(*(tiny.sample(m, case, **conditions, **kwargs) for m in (sparse, model)))
        (run,) = tiny.history(sparse)
        assert run.dense == {reason: case.calls * run.forwards}

    return check


def named(tiny, name):
    return next(case for case in tiny.CASES if case.name == name)


@pytest.mark.parametrize(
    "change", [{"strength": 0.5}, {"strength": 2.0}, {"pixel_mask": torch.ones(1, 1, 1, 192, 256)}]
)
def test_ltx_guides_of_other_strength(tiny, assert_dense, change):
    case = named(tiny, "ltx video guides")
    guides = case.conditions()["guide_attention_entries"]
    positive = case.conditioning(2, guide_attention_entries=[guides[0], {**guides[1], **change}])
    assert_dense(case, reasons.MASK, positive)


def test_ltx_video_with_tokens_left_out(tiny, assert_dense):
    case = named(tiny, "ltx video guides")
    mask = case.mask()
    mask[:, :, 2, 3] = -1
    assert_dense(case, reasons.MASK, noise_mask=mask)


def test_cosmos_predict_2_image(tiny, assert_dense):
    """A latent of one frame."""
    case = dataclasses.replace(named(tiny, "cosmos predict 2 odd size"), latent=(1, 16, 1, 22, 26))
    assert_dense(case, reasons.IMAGE)


def test_text_as_long_as_the_video(tiny, assert_dense):
    case = dataclasses.replace(named(tiny, "cosmos 1"), text=5 * 6 * 7)
    assert_dense(case, reasons.AMBIGUOUS)


def test_images_as_long_as_the_video(tiny, assert_dense, monkeypatch):
    """First and last frame, 2 x 257 vision tokens: what the call is must not hang on the flag that Wan gives it."""
    import comfy.ldm.wan.model

    from dit_accel.tests.comfy.tiny.case import Vision

    attend = comfy.ldm.wan.model.optimized_attention

    def without_the_flag(*args, low_precision_attention=True, **kwargs):
        return attend(*args, **kwargs)

    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", without_the_flag)
    i2v, latent = named(tiny, "wan i2v"), (1, 16, 2, 2, 2 * 257)
    images = {
        "concat_latent_image": tiny.rand(*latent, seed=5),
        "concat_mask": torch.ones(1, 1, *latent[2:]),
        "clip_vision_output": Vision(2 * 257, 1280),
    }
    assert_dense(dataclasses.replace(i2v, latent=latent, conditions=lambda: images), reasons.AMBIGUOUS)
