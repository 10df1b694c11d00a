"""Record watches the linear layers of a model whatever their weights are kept in."""

import importlib

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.comfy.quant.linears import watched_linears
from dit_accel.accel.quant.activations import Activations
from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.accel.quant.weight4 import Weight4
from dit_accel.tests.support import core_formats
from dit_accel.tests.support.closeness import assert_close, distance
from dit_accel.tests.support.quantised_wan import LAYERS, quantised

FORMATS = ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise")


@pytest.fixture
def patch(comfy):
    from dit_accel.accel.comfy.sparse import patch

    return patch


@pytest.fixture(scope="module")
def weights(tiny):
    """Of a Wan with its blocks in 4 bits, and what comes out of the 4 bits."""
    wan = importlib.import_module("dit_accel.tests.comfy.tiny.wan").WAN
    case = tiny.CASES[0].__class__("wan", "WAN21_T2V", {**wan, "text_dim": 4096}, (1, 16, 5, 12, 14), 2)
    with torch.inference_mode():
        return quantised({name: each.clone() for name, each in case.model().model.diffusion_model.state_dict().items()})


@pytest.fixture
def load(comfy, weights, tmp_path):
    """A model with its blocks' weights as they come from a file of that kind."""
    import comfy.sd

    from dit_accel.accel.comfy.quant import svdquant

    packed, plain = weights

    def model(kept_in):
        if kept_in == "4 bits":
            tensors, metadata = tensors_of(packed)
            save_file(tensors, tmp_path / "wan.safetensors", metadata=metadata)
            return svdquant.load(tmp_path / "wan.safetensors")
        if kept_in in FORMATS:
            blocks = [key.removesuffix(".weight") for key in packed if isinstance(packed[key], Weight4)]
            return comfy.sd.load_diffusion_model_state_dict(core_formats.quantised(plain, blocks, kept_in))
        return comfy.sd.load_diffusion_model_state_dict(dict(plain))

    return model


def linears(patch, model):
    """What Record finds in a run; the run's result does not change."""
    import comfy.sample

    def sample(each):
        random = torch.Generator().manual_seed(1)
        noise, text = torch.randn(1, 16, 5, 12, 14, generator=random), torch.randn(1, 20, 4096, generator=random)
        prompt = [[text, {}]]
        return comfy.sample.sample(
            each, noise, 2, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(noise), seed=1, disable_pbar=True
        )

    watched = patch.record(model, patch.LINEAR)
    assert torch.equal(sample(watched), sample(model))
    return patch.patch_of(watched).linears


@pytest.fixture(scope="module")
def wanted(comfy, weights):
    """Of the plain model."""
    import comfy.sd

    from dit_accel.accel.comfy.sparse import patch

    return linears(patch, comfy.sd.load_diffusion_model_state_dict(dict(weights[1])))


@pytest.mark.parametrize("kept_in", [*FORMATS, "4 bits"])
def test_the_same_layers_are_watched_as_of_the_plain_model(patch, load, wanted, kept_in):
    found = linears(patch, load(kept_in))
    assert found.keys() == wanted.keys()
    assert {f"blocks.{block}.{layer}" for block in range(2) for layer in LAYERS} < wanted.keys()
    for name, statistics in found.items():
        assert statistics.rows == wanted[name].rows, name
        # Rounding to 4 bits adds up from block to block.
        if name.startswith("blocks.0."):
            assert distance(statistics.mean_square, wanted[name].mean_square) < 0.2, name


class FileLinear(torch.nn.Module):
    """As other packs write theirs: no torch.nn.Linear, no parameter that is called weight."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.qweight = torch.ones(out_features, in_features)

    def forward(self, hidden_states):
        return hidden_states @ self.qweight.T


class Projection(torch.nn.Module):
    """Knows the size of what it is given, and is no linear layer."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.linear = FileLinear(in_features, 2)

    def forward(self, x):
        return self.linear(hidden_states=x.relu())


def test_layers_of_other_packs_are_watched(comfy):
    network = torch.nn.Sequential(FileLinear(4, 3), Projection(3), torch.nn.Linear(2, 5))
    activations = Activations()
    activations.watching = True
    with watched_linears(network, activations):
        network(torch.ones(1, 7, 4))
    found = activations.close()
    assert {name: (each.rows, len(each.largest)) for name, each in found.items()} == {
        "0": (7, 4),
        "1.linear": (7, 3),
        "2": (7, 2),
    }
    assert found["1.linear"].largest.tolist() == [4.0] * 3


def test_what_is_watched_is_let_go_even_if_the_run_fails(comfy):
    import comfy.ops

    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Linear(3, 2)))
    activations, x = Activations(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    activations.watching = True
    plain, fused = network(x), comfy.ops.linear_input_act
    with pytest.raises(KeyboardInterrupt), watched_linears(network, activations):
        assert torch.equal(network(x), plain)
        raise KeyboardInterrupt
    network(x)
    assert comfy.ops.linear_input_act is fused
    found = activations.close()
    assert {name: statistics.rows for name, statistics in found.items()} == {"0": 5, "2.0": 5}
    assert torch.equal(found["0"].largest, x.abs().amax(0))
    assert_close(found["2.0"].largest, network[0](x).relu().amax(0))
