"""nunchaku's Qwen-Image and Z-Image at their published widths in a real server: ComfyUI's detection knows no others.

One layer of each, beside the plain model that it stands for.
"""

import importlib
import shutil

import numpy as np
import pytest
from safetensors.torch import save_file

from dit_accel.accel.headless.server import Server
from dit_accel.tests.server.conftest import ARGUMENTS, ENVIRONMENT, REPOSITORY, Player
from dit_accel.tests.support.graphs import Graph

pytestmark = pytest.mark.slow

# Text width, and layers in 4 bits.
MODELS = {"qwen image 3072": (3584, 14), "z image 3840": (2560, 5)}
CLOSE = 1e-3


@pytest.fixture(scope="module")
def base(comfy, tmp_path_factory):
    base = tmp_path_factory.mktemp("wide models")
    folder = base / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    nunchaku = importlib.import_module("dit_accel.tests.support.nunchaku_checkpoints")
    for name in MODELS:
        made = nunchaku.checkpoint(name)
        for file, tensors, metadata in ((f"{name} 4bit", made.tensors, made.metadata), (name, made.plain, None)):
            tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(tensors, folder / f"{file}.safetensors", metadata=metadata)
        del made, tensors
        nunchaku.forget()
    yield base
    shutil.rmtree(base / "models")


@pytest.fixture(scope="module")
def play(comfyui, base):
    standins = REPOSITORY / "tests" / "server" / "standins"
    with Server(comfyui, base, [REPOSITORY, standins], ARGUMENTS, ENVIRONMENT) as server:
        yield Player(server)


@pytest.mark.parametrize("name", MODELS)
def test_the_plain_model(play, name):
    width, layers = MODELS[name]

    def picture(load):
        graph = Graph()
        latent = graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
        prompt = graph.conditioning(100, width=width)
        samples = graph.ksampler(load(graph), latent, steps=1, cfg=1.0, positive=prompt, negative=prompt)
        graph.add("StandinReadLatent", samples=samples)
        return play(graph, timeout=600)

    def four_bits(graph):
        return graph.add("DitAccelLoadSVDQuant", model_name=f"{name} 4bit.safetensors", compute="auto")

    found, expected = picture(four_bits), picture(lambda graph: graph.load(name))
    assert f"w4a16: {layers}" in found.log
    assert expected.latent.std() > 0.1
    assert np.linalg.norm(found.latent - expected.latent) < CLOSE * np.linalg.norm(expected.latent)
