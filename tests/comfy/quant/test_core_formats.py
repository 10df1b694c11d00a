"""Layers in core's own formats in a file that Load SVDQuant reads: as near to the plain model as by core's loader."""

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.tests.comfy.quant.sampling import distance, matrices, merging, sample, scheduled
from dit_accel.tests.support.core_formats import quantised

FORMATS = ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise")
# What a class of devices computes itself: as core asks for it.
DEVICES = {
    "no 8-bit floats": (),
    "sm_89, sm_90": ("fp8",),
    "sm_100, sm_120": ("fp8", "nvfp4", "mxfp8"),
}


def write(path, state, kind, four_bits=None):
    """The blocks' layers in a format of core's; where there is a 4-bit state dict, every other one in 4 bits."""
    layers = [name for name, tensor in state.items() if name.startswith("blocks.") and tensor.ndim == 2]
    layers = [name.removesuffix(".weight") for name in layers if name.endswith(".weight")]
    chosen = layers[::2] if four_bits else layers
    plain = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    tensors = quantised(plain | {f"{name}.weight": state[f"{name}.weight"].float() for name in chosen}, chosen, kind)
    metadata = {}
    if four_bits:
        for layer in layers[1::2]:
            tensors[f"{layer}.weight"] = four_bits[f"{layer}.weight"]
        tensors, metadata = tensors_of(tensors)
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    import comfy.model_management as management

    for kind in ("fp8", "nvfp4", "mxfp8"):
        supported = kind in DEVICES[request.param]
        monkeypatch.setattr(management, f"supports_{kind}_compute", lambda device=None, answer=supported: answer)
    return request.param


@pytest.mark.parametrize("kind", FORMATS)
def test_as_near_as_by_cores_own_loader(comfy, load, state, plain, tmp_path, device, kind):
    import comfy.sd

    path = write(tmp_path / "m.safetensors", state, kind)
    expected = sample(comfy.sd.load_diffusion_model_state_dict(dict(state)))
    by_core = distance(sample(comfy.sd.load_diffusion_model(str(path))), expected)
    assert 1e-4 < by_core < 1
    assert distance(sample(load(path)), expected) <= 1.02 * by_core


@pytest.mark.thorough
@pytest.mark.parametrize("kind", FORMATS)
def test_beside_layers_in_4_bits(load, state, packed, plain, tmp_path, device, kind):
    """The other half of the layers is exact, so that the distance is smaller than with all layers in core's format."""
    import comfy.sd

    from dit_accel.accel.comfy.quant.weight4_layout import layers

    alone = comfy.sd.load_diffusion_model(str(write(tmp_path / "alone.safetensors", packed[1], kind)))
    mixed = load(write(tmp_path / "mixed.safetensors", packed[1], kind, packed[0]))
    assert len(layers(mixed.model)) == 10
    expected = sample(plain)
    assert distance(sample(mixed), expected) < distance(sample(alone), expected)


@pytest.fixture(scope="module")
def both(comfy, load, state, packed, tmp_path_factory):
    """A model with layers in FP8 and in 4 bits, and the plain one that it stands for."""
    import comfy.sd
    from comfy_kitchen.tensor import QuantizedTensor

    with torch.inference_mode():
        mixed = load(write(tmp_path_factory.mktemp("mixed") / "m.safetensors", packed[1], "float8_e4m3fn", packed[0]))
        weights = mixed.model.diffusion_model.named_parameters()
        dense = {
            name: each.to(torch.float32).dequantize() for name, each in weights if isinstance(each, QuantizedTensor)
        }
        return mixed, comfy.sd.load_diffusion_model_state_dict(packed[1] | dense)


# Layers in FP8 are expanded to bf16 on their way.
FP8_CLOSE = 1e-2


def test_a_merge_from_layers_in_cores_formats_is_the_plain_models(other, both):
    mixed, dense = both
    merge = merging("ModelMergeSimple", 0.4)
    expected = sample(merge(other, dense))
    assert distance(expected, sample(other)) > 2 * FP8_CLOSE
    assert distance(sample(merge(other, mixed)), expected) < FP8_CLOSE


@pytest.mark.parametrize("node", ["lora", "model"])
def test_what_hooks_schedule_reaches_layers_in_cores_formats(other, state, both, node):
    mixed, dense = both
    hooked = matrices(state) if node == "lora" else other
    before = sample(mixed)
    expected = scheduled(dense, hooked, (1.0, 0.5), node)
    assert distance(expected, scheduled(dense, hooked, (0.0,), node)) > 2 * FP8_CLOSE
    assert distance(scheduled(mixed, hooked, (1.0, 0.5), node), expected) < FP8_CLOSE
    assert torch.equal(sample(mixed), before)
