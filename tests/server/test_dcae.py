"""DC-AE in a real server: loaded, encoded, decoded, tiled, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_accel.accel.headless.server import GraphFailed
from dit_accel.tests.support.closeness import distance
from dit_accel.tests.support.graphs import Graph

GOLDEN = Path(__file__).parents[1] / "golden"
NAME = "dcae_mit_sana_like.safetensors"


@pytest.fixture(scope="module")
def vaes(server_base):
    folder = server_base / "models" / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / NAME, folder / NAME)
    return folder


@pytest.fixture(scope="module")
def latents(server_base, vaes):
    """The official latent, one that is larger, and one with too few channels, as Save Latent writes them."""
    folder = server_base / "input"
    folder.mkdir(exist_ok=True)
    official = load_file(GOLDEN / NAME.replace(".", "_io."))["latent"]
    larger = torch.randn(1, 8, 11, 6, generator=torch.Generator().manual_seed(3))
    for name, latent in (("official", official), ("larger", larger), ("thin", larger[:, :4].contiguous())):
        save_file({"latent_tensor": latent, "latent_format_version_0": torch.tensor([])}, folder / f"{name}.latent")
    return {"official": official, "larger": larger}


def loaded(graph, name=NAME, variant="auto", dtype="fp32"):
    return graph.add("DitAccelLoadDCAE", vae_name=name, variant=variant, dtype=dtype)


def there_and_back(play, latent, decode="VAEDecode", encode="VAEEncode", **tiles):
    """Decoded and encoded again: the latent."""
    graph = Graph()
    vae = loaded(graph)
    samples = graph.add("LoadLatent", latent=f"{latent}.latent")
    image = graph.add(decode, samples=samples, vae=vae, **tiles)
    encoded = graph.add(encode, pixels=image, vae=vae, **tiles)
    graph.add("StandinReadLatent", samples=encoded)
    return play(graph)


STOCK_TILES = {"tile_size": 64, "overlap": 32, "temporal_size": 64, "temporal_overlap": 8}


@pytest.mark.parametrize("latent", ["official", "larger"])
def test_every_node_gives_the_same(play, latents, latent):
    whole = there_and_back(play, latent)
    for decode, encode, tiles in (
        ("VAEDecodeTiled", "VAEEncodeTiled", STOCK_TILES),
        ("DitAccelDCAEDecode", "DitAccelDCAEEncode", {"tile_size": 0}),
        ("DitAccelDCAEDecode", "DitAccelDCAEEncode", {"tile_size": 32}),
    ):
        assert distance(there_and_back(play, latent, decode, encode, **tiles).latent, whole.latent) < 1e-5
    # An autoencoder: what comes back is something like what went in, and of its size.
    assert whole.latent.shape == tuple(latents[latent].shape)


def test_half_precision_is_near(play, latents):
    graph = Graph()
    vae = loaded(graph, dtype="bf16")
    image = graph.add("VAEDecode", samples=graph.add("LoadLatent", latent="official.latent"), vae=vae)
    graph.add("StandinReadLatent", samples=graph.add("VAEEncode", pixels=image, vae=vae))
    result = play(graph)
    assert f"{NAME}: DC-AE" in result.log and "bfloat16" in result.log
    exact = there_and_back(play, "official").latent
    assert 0 < np.linalg.norm(result.latent - exact) < 0.1 * np.linalg.norm(exact)


def test_the_official_reconstruction(play, server_base, latents):
    graph = Graph()
    samples = graph.add("LoadLatent", latent="official.latent")
    image = graph.add("VAEDecode", samples=samples, vae=loaded(graph))
    graph.add("SaveImage", images=image, filename_prefix="dcae")
    result = play(graph)
    from PIL import Image

    (saved,) = result.outputs["images"]
    found = np.asarray(Image.open(server_base / "output" / saved["filename"]), dtype=np.float32) / 255
    expected = load_file(GOLDEN / NAME.replace(".", "_io."))["reconstruction"][0]
    expected = ((expected + 1) / 2).clamp(0, 1).movedim(0, -1).numpy()
    assert np.abs(found - expected).max() < 1.01 / 255


@pytest.mark.parametrize("decode, tiles", [("VAEDecode", {}), ("DitAccelDCAEDecode", {"tile_size": 0})])
def test_a_latent_of_another_model(play, latents, decode, tiles):
    graph = Graph()
    image = graph.add(decode, samples=graph.add("LoadLatent", latent="thin.latent"), vae=loaded(graph), **tiles)
    graph.add("PreviewImage", images=image)
    with pytest.raises(GraphFailed, match=r"latent of 8 channels .* found 4"):
        play(graph)


def refused(play, name, **settings):
    graph = Graph()
    image = graph.add(
        "VAEDecode", samples=graph.add("LoadLatent", latent="official.latent"), vae=loaded(graph, name, **settings)
    )
    graph.add("PreviewImage", images=image)
    with pytest.raises(GraphFailed) as failure:
        play(graph)
    assert failure.value.node_type == "DitAccelLoadDCAE"
    return failure.value.message


def test_half_a_file(play, vaes, latents):
    (vaes / "half.safetensors").write_bytes((vaes / NAME).read_bytes()[:200_000])
    assert "half.safetensors" in refused(play, "half.safetensors")


def test_a_missing_tensor(play, vaes, latents):
    tensors = load_file(vaes / NAME)
    lost = "decoder.stages.1.op_list.1.main.conv1.conv.weight"
    del tensors[lost]
    save_file(tensors, vaes / "gap.safetensors")
    message = refused(play, "gap.safetensors")
    assert "gap.safetensors" in message and "stages.1" in message


def test_another_kind_of_autoencoder(play, vaes, latents):
    save_file({"decoder.conv_in.weight": torch.zeros(512, 4, 3, 3)}, vaes / "sd.safetensors")
    assert "sd.safetensors" in refused(play, "sd.safetensors")


def test_a_vae_of_core_in_our_nodes(play, latents):
    graph = Graph()
    vae = graph.add("VAELoader", vae_name="pixel_space")
    samples = graph.add("LoadLatent", latent="official.latent")
    image = graph.add("DitAccelDCAEDecode", samples=samples, vae=vae, tile_size=0)
    graph.add("PreviewImage", images=image)
    with pytest.raises(GraphFailed, match="expected a DC-AE from Load DC-AE"):
        play(graph)
