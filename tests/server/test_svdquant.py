"""4-bit models in a real server: the loading node, LoRA loaders and Sparse Attention behind it, saving, bad files."""

import importlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dit_accel.accel.headless.server import GraphFailed, GraphRejected
from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.tests.support.graphs import SMALL, Graph, nonce
from dit_accel.tests.support.quantised_wan import quantised

WAN = "wan21_t2v"
CLOSE = 1e-3


@pytest.fixture(scope="module")
def models(server_base):
    """The folder of models, with a Wan in 4 bits and the plain one that it stands for."""
    folder = server_base / "models" / "diffusion_models"
    with safe_open(folder / f"{WAN}.safetensors", "pt") as file:
        metadata = file.metadata()
    packed, plain = quantised(load_file(folder / f"{WAN}.safetensors"))
    tensors, header = tensors_of(packed)
    save_file(tensors, folder / "wan_4bit.safetensors", metadata={**metadata, **header})
    save_file(plain, folder / "wan_plain.safetensors", metadata=metadata)
    return folder


@pytest.fixture(scope="module")
def flux(comfy, models):
    nunchaku = importlib.import_module("dit_accel.tests.support.nunchaku_checkpoints")
    for grid in ("int4", "e2m1"):
        checkpoint = nunchaku.checkpoint("flux", grid)
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        save_file(tensors, models / f"svdq-{grid}_r16-flux.safetensors", metadata=checkpoint.metadata)
        save_file(checkpoint.plain, models / f"flux_{grid}_plain.safetensors")
    return models


@pytest.fixture(scope="module")
def lora(server_base, models):
    folder = server_base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for name, weight in load_file(models / "wan_plain.safetensors").items():
        if name.startswith("blocks.") and name.endswith((".q.weight", "ffn.0.weight")):
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_B.weight"] = torch.randn(weight.shape[0], 4, generator=random) / 8
            tensors[f"{layer}.lora_A.weight"] = torch.randn(4, weight.shape[1], generator=random) / 4
    save_file(tensors, folder / "style.safetensors")
    return "style.safetensors"


def loaded(graph, name, compute="auto"):
    return graph.add("DitAccelLoadSVDQuant", model_name=f"{name}.safetensors", compute=compute)


def video(play, load, patch=lambda graph, model: model):
    graph = Graph()
    model = patch(graph, load(graph))
    samples = graph.ksampler(model, graph.empty_latent(SMALL))
    graph.read(samples, model)
    return play(graph)


def four_bits(graph):
    return loaded(graph, "wan_4bit")


def plain(graph):
    return graph.load("wan_plain")


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_wan(play, models):
    found, expected = video(play, four_bits), video(play, plain)
    assert "wan_4bit.safetensors" in found.log and "w4a16: 20" in found.log
    assert distance(found.latent, expected.latent) < CLOSE


def test_sparse_attention_on_top(play, models):
    def sparse(graph, model):
        return graph.accelerate(model, top_p=0.5, floor=0.0)

    found, expected = video(play, four_bits, sparse), video(play, plain, sparse)
    assert distance(found.latent, expected.latent) < CLOSE
    assert found.run["sparse"] == expected.run["sparse"] == {"torch": 6}


def test_lora_loaders(play, models, lora):
    def with_lora(graph, model):
        return graph.add("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=0.9)

    before, found, expected = (
        video(play, load, patch).latent
        for load, patch in (
            (four_bits, lambda graph, model: model),
            (four_bits, with_lora),
            (plain, with_lora),
        )
    )
    assert distance(found, expected) < CLOSE
    assert distance(expected, before) > 0.1
    # And off again.
    assert np.array_equal(video(play, four_bits).latent, before)


def test_saved_by_comfyui_and_loaded_again(play, server_base, models, lora):
    graph = Graph()
    model = graph.add("LoraLoaderModelOnly", model=four_bits(graph), lora_name=lora, strength_model=0.9)
    prefix = f"diffusion_models/saved{nonce()}"
    graph.add("ModelSave", model=model, filename_prefix=prefix)
    play(graph)
    (saved,) = (server_base / "output" / "diffusion_models").glob("*.safetensors")
    # ComfyUI knows the small model's width by the metadata alone, which it does not save.
    with safe_open(models / f"{WAN}.safetensors", "pt") as file:
        save_file(load_file(saved), models / "wan_saved.safetensors", metadata=file.metadata())

    def with_lora(graph, model):
        return graph.add("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=0.9)

    found = video(play, lambda graph: loaded(graph, "wan_saved")).latent
    # The saved rank is in 16 bits.
    assert distance(found, video(play, four_bits, with_lora).latent) < 1e-2


@pytest.mark.parametrize("grid", ["int4", "e2m1"])
def test_flux_of_nunchaku(play, flux, grid):
    def picture(load):
        graph = Graph()
        model = load(graph)
        empty = graph.add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
        latent = graph.add("StandinNonce", samples=empty, nonce=nonce())
        samples = graph.ksampler(model, latent, steps=2, cfg=1.0)
        graph.add("StandinReadLatent", samples=samples)
        return play(graph)

    found = picture(lambda graph: loaded(graph, f"svdq-{grid}_r16-flux"))
    expected = picture(lambda graph: graph.load(f"flux_{grid}_plain"))
    assert "w4a16: 16" in found.log
    assert distance(found.latent, expected.latent) < CLOSE


@pytest.mark.parametrize("compute", ["w4a4", "w8a8", "w4a8", "nvfp4"])
def test_arithmetic_that_this_machine_lacks(play, models, compute):
    with pytest.raises(GraphFailed, match=f"compute: {compute}") as failure:
        video(play, lambda graph: loaded(graph, "wan_4bit", compute))
    assert failure.value.node_type == "DitAccelLoadSVDQuant"


def truncated(path, models):
    path.write_bytes((models / "wan_4bit.safetensors").read_bytes()[:100_000])


def pickled(path, models):
    torch.save({"blocks.0.ffn.0.weight": torch.zeros(4)}, path)


def plain_model(path, models):
    save_file({"blocks.0.ffn.0.weight": torch.zeros(4, 4, dtype=torch.bfloat16)}, path)


def without_scales(path, models):
    tensors = load_file(models / "wan_4bit.safetensors")
    del tensors["blocks.1.ffn.0.weight_scale"]
    save_file(tensors, path)


def with_nan(path, models):
    tensors = load_file(models / "wan_4bit.safetensors")
    tensors["blocks.1.ffn.0.weight_scale"][0, 0] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (truncated, ["expected a safetensors file"]),
        (pickled, ["expected a safetensors file", "a pickle"]),
        (plain_model, ["expected a 4-bit model", "no 4-bit layer"]),
        (without_scales, ["blocks.1.ffn.0", "weight_scale"]),
        (with_nan, ["blocks.1.ffn.0.weight_scale", "NaN"]),
    ],
)
def test_bad_files(play, models, spoil, words):
    name = f"bad_{spoil.__name__}"
    spoil(models / f"{name}.safetensors", models)
    with pytest.raises(GraphFailed) as failure:
        video(play, lambda graph: loaded(graph, name))
    assert failure.value.node_type == "DitAccelLoadSVDQuant"
    assert all(word in failure.value.message for word in [f"{name}.safetensors", *words])


def test_a_file_that_is_not_there(play, models):
    with pytest.raises(GraphRejected, match="model_name"):
        video(play, lambda graph: loaded(graph, "gone"))
