"""4-bit models under torch.compile, with and without LoRA. The backends need no compiler of C."""

from __future__ import annotations

import importlib

import pytest
import torch
from safetensors.torch import save_file
from torch._dynamo.utils import counters

from dit_accel.accel.quant import compute
from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.tests.support.quantised_wan import quantised


@pytest.fixture(autouse=True)
def _one_graph(comfy, monkeypatch):
    """As on a GPU: attention that torch.compile can trace, so that a forward is one graph."""
    import comfy.ldm.flux.math
    import comfy.ldm.modules.attention
    import comfy.ldm.wan.model

    for module in (comfy.ldm.wan.model, comfy.ldm.flux.math):
        monkeypatch.setattr(module, "optimized_attention", comfy.ldm.modules.attention.attention_pytorch)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def wan(tiny, tmp_path_factory):
    """The file of a Wan of one block."""
    settings = importlib.import_module("dit_accel.tests.comfy.tiny.wan").WAN
    settings = {**settings, "text_dim": 4096, "num_layers": 1}
    case = tiny.CASES[0].__class__("wan", "WAN21_T2V", settings, (1, 16, 5, 12, 14), 2)
    with torch.inference_mode():
        state = case.model().model.diffusion_model.state_dict()
        tensors, metadata = tensors_of(quantised({name: tensor.clone() for name, tensor in state.items()})[0])
    path = tmp_path_factory.mktemp("wan") / "wan.safetensors"
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def flux(comfy, tmp_path_factory):
    checkpoint = importlib.import_module("dit_accel.tests.support.nunchaku_checkpoints").checkpoint("flux")
    path = tmp_path_factory.mktemp("flux") / "flux.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, path, checkpoint.metadata)
    return path


def lora(patcher, strength):
    import comfy.sd

    from dit_accel.accel.comfy.quant.weight4_layout import layers

    random = torch.Generator().manual_seed(3)
    factors = {}
    for name, layer in list(layers(patcher.model).items())[::3]:
        rows, columns = layer.weight.shape
        factors[f"{name}.lora_B.weight"] = torch.randn(rows, 8, generator=random) / columns**0.5
        factors[f"{name}.lora_A.weight"] = torch.randn(8, columns, generator=random) / 4
    return comfy.sd.load_lora_for_models(patcher, None, factors, strength, 0)[0]


def sample(patcher, shape, text, **options):
    import comfy.sample

    random = torch.Generator().manual_seed(1)
    latent = torch.randn(shape, generator=random)
    prompt = [[torch.randn(1, 20, text, generator=random), options]]
    arguments = (2, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(latent))
    return comfy.sample.sample(patcher, latent, *arguments, seed=1)


def video(patcher):
    return sample(patcher, (1, 16, 3, 8, 10), 4096)


def picture(patcher):
    return sample(patcher, (1, 16, 8, 8), 64, pooled_output=torch.ones(1, 768), guidance=3.5)


@pytest.mark.parametrize(
    "file, run, backend, card",
    [
        ("wan", video, "eager", compute.Card("sm_89")),
        pytest.param("wan", video, "eager", compute.Card("sm_90"), marks=pytest.mark.thorough),
        pytest.param("wan", video, "aot_eager", compute.Card("cpu"), marks=pytest.mark.thorough),
        ("flux", picture, "eager", compute.Card("cpu")),
    ],
    ids=["w4a4", "w8a8", "w4a16", "flux"],
)
def test_same_result_in_one_graph(request, monkeypatch, file, run, backend, card):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    from dit_accel.accel.comfy.quant import svdquant

    monkeypatch.setattr(svdquant, "card_of", lambda device: card)
    model = svdquant.load(request.getfixturevalue(file), "w8a8" if card.chip == "sm_90" else "auto")
    patchers = [model, lora(model, 1.0)]
    expected = [run(patcher) for patcher in patchers]
    assert (expected[1] - expected[0]).norm() > 0.1 * expected[0].norm()
    graphs = []
    for patcher, eager in 2 * list(zip(patchers, expected, strict=True)):
        compiled = patcher.clone()
        set_torch_compile_wrapper(model=compiled, backend=backend)
        assert (run(compiled) - eager).norm() < 1e-5 * eager.norm()
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    # What was seen once is not compiled again.
    assert graphs == [1, 2, 2, 2]
