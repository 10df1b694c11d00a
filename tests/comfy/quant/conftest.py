"""A tiny Wan in 4 bits: its file, ComfyUI's model of it with both kinds of patchers, and the plain model beside it."""

import importlib

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.tests.support.quantised_wan import quantised


@pytest.fixture(scope="session")
def load(comfy):
    return importlib.import_module("dit_accel.accel.comfy.quant.svdquant").load


@pytest.fixture(scope="module")
def state(tiny):
    wan = importlib.import_module("dit_accel.tests.comfy.tiny.wan").WAN
    case = tiny.CASES[0].__class__("wan", "WAN21_T2V", {**wan, "text_dim": 4096}, (1, 16, 5, 12, 14), 2)
    with torch.inference_mode():
        return {name: tensor.clone() for name, tensor in case.model().model.diffusion_model.state_dict().items()}


@pytest.fixture(scope="module")
def packed(state):
    return quantised(state)


@pytest.fixture(scope="module")
def file(packed, tmp_path_factory):
    path = tmp_path_factory.mktemp("wan") / "wan.safetensors"
    tensors, metadata = tensors_of(packed[0])
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.fixture
def dynamic_patchers(monkeypatch):
    """ComfyUI gives a CPU ordinary patchers; here it gets the dynamic ones, without their pinned memory. They hand
    every layer its patches as on a GPU."""
    import comfy.model_patcher as patchers
    import comfy_aimdo.host_buffer

    class HostBuffer:
        size = 0

        def __init__(self, *sizes):
            pass

    monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", HostBuffer)
    monkeypatch.setattr(
        patchers.ModelPatcherDynamic, "__new__", staticmethod(lambda kind, *args, **options: object.__new__(kind))
    )
    monkeypatch.setattr(patchers, "CoreModelPatcher", patchers.ModelPatcherDynamic)


@pytest.fixture(params=["ordinary", "dynamic"])
def model(request, load, file):
    if request.param == "dynamic":
        request.getfixturevalue("dynamic_patchers")
    patcher = load(file)
    assert patcher.is_dynamic() == (request.param == "dynamic")
    return patcher


@pytest.fixture(scope="module")
def plain(comfy, packed):
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(dict(packed[1]))


@pytest.fixture(scope="module")
def other(comfy, packed):
    """Another plain Wan: every weight and bias of the first one changed by a third of its size."""
    import comfy.sd

    random = torch.Generator().manual_seed(11)
    with torch.inference_mode():
        changed = {
            name: tensor + torch.randn(tensor.shape, generator=random) * tensor.std().nan_to_num() / 3
            if tensor.is_floating_point() and tensor.numel() > 1
            else tensor
            for name, tensor in packed[1].items()
        }
        return comfy.sd.load_diffusion_model_state_dict(changed)
