"""Every video family with its blocks in 4 bits, through ComfyUI's own detection, beside the plain model."""

from __future__ import annotations

import importlib
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.accel.quant.weight4 import Weight4, dequantise
from dit_accel.tests.support import checkpoints
from dit_accel.tests.support.svdquant import quantise, smoothing

# Tiny checkpoint -> the tiny case that has a latent and conditions for it.
FAMILIES = {
    "wan21_t2v": "wan t2v",
    "wan22_inpaint_high": "wan fun inpaint",
    "wan21_vace": "wan vace",
    "wan21_camera": "wan camera",
    "wan22_s2v": "wan s2v",
    "wan21_humo": "wan humo",
    "wan21_scail2": "wan scail 2 replacement",
    "wan22_dancer_global": "wan dancer global",
    "wan21_i2v_wide": "wan i2v",
    "wan22_animate": "wan animate",
    "wan_animate2": "wan animate 2",
    "hunyuan_video": "hunyuan 1",
    "hunyuan_video_15": "hunyuan 1.5 with byt5 and vision",
    "kandinsky5_lite": "kandinsky 5 lite",
    "cogvideox_t2v": "cogvideox 1 t2v learned positions",
    "mochi": "mochi",
    "cosmos": "cosmos 1",
    "cosmos_predict2_i2v": "cosmos predict 2 i2v",
    "ltx_video": "ltx video",
    "ltx_2": "ltx 2",
    "minimax_h3": "minimax h3",
}
# ComfyUI's detection takes their published widths for granted.
ONE_WIDTH = {"mochi", "cosmos", "cosmos_predict2_i2v"}
TEXT_WIDTH = {"kandinsky5_lite": 3584}
BLOCK = re.compile(r"\.\d+\..*\.weight$")
CLOSE = 1e-3


@pytest.fixture(scope="module")
def folder(comfyui, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    checkpoints.build(comfyui, folder, tuple(FAMILIES))
    yield folder
    shutil.rmtree(folder)


def quantised(plain):
    """The state dict with its blocks' layers as Weight4, and the plain one that it stands for."""
    random = torch.Generator().manual_seed(5)
    packed, dense = dict(plain), dict(plain)
    for name, weight in plain.items():
        if BLOCK.search(name) and weight.ndim == 2 and not weight.shape[1] % 64:
            packed[name] = quantise(weight, smoothing(weight, torch.randn(weight.shape[1], generator=random).exp()))
            dense[name] = dequantise(packed[name])
    return packed, dense


def conditioning(tiny, case, name):
    (_, options), *_ = case.conditioning(2)
    # What the encoder of faces makes is not needed where there is no face.
    options.pop("face_video_pixels", None)
    return [[tiny.rand(1, case.text, TEXT_WIDTH.get(name, tiny.TEXT), seed=2), options]]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plain_model(tiny, folder, monkeypatch, name):
    import comfy.model_detection
    import comfy.sd

    from dit_accel.accel.comfy.quant import svdquant, weight4_layout

    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
    if name in ONE_WIDTH:
        config = checkpoints.CHECKPOINTS[name].config
        monkeypatch.setattr(comfy.model_detection, "detect_unet_config", lambda *args, **options: dict(config))
    original = load_file(folder / f"{name}.safetensors")
    packed, dense = quantised(original)
    tensors, header = tensors_of(packed)
    save_file(tensors, folder / f"{name}_4bit.safetensors", metadata={**metadata, **header})
    model = svdquant.load(folder / f"{name}_4bit.safetensors")
    count = sum(isinstance(tensor, Weight4) for tensor in packed.values())
    assert len(weight4_layout.layers(model.model)) == count >= 14

    dense_cases = importlib.import_module("dit_accel.tests.comfy.tiny.wan_variants").DENSE
    (case,) = (case for case in [*tiny.CASES, *(case for case, *_ in dense_cases)] if case.name == FAMILIES[name])
    prompt = conditioning(tiny, case, name)

    def sample(patcher):
        return tiny.sample(patcher, case, positive=prompt, negative=prompt, cfg=1.0)

    plain, other = (comfy.sd.load_diffusion_model_state_dict(each, metadata=metadata) for each in (dense, original))
    expected = sample(plain)
    assert (sample(model) - expected).norm() < CLOSE * expected.norm()
    # The layers in 4 bits have a say.
    assert (sample(other) - expected).norm() > CLOSE * expected.norm()
