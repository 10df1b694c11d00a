"""DC-AE as a ComfyUI VAE: core's own nodes on the tiny autoencoders that the official code made."""

import importlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dit_accel.tests.support.closeness import distance
from dit_accel.tests.support.dcae_files import diffusers_settings

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = ("dcae_mit_sana_like", "dcae_mit_mix_like")


@pytest.fixture(scope="session")
def autoencoder(comfy):
    return importlib.import_module("dit_accel.accel.comfy.dcae.autoencoder")


@pytest.fixture(scope="session")
def nodes(comfy):
    return importlib.import_module("nodes")


@pytest.fixture(params=FILES)
def golden(request):
    """The file of an autoencoder, and an image, its latent and its reconstruction."""
    return GOLDEN / f"{request.param}.safetensors", load_file(GOLDEN / f"{request.param}_io.safetensors")


@pytest.fixture
def vae(autoencoder, golden):
    return autoencoder.load(golden[0], "auto", "fp32")


def as_image(tensor):
    """[B, 3, H, W] around -1..1 as ComfyUI has it."""
    return ((tensor + 1) / 2).clamp(0, 1).movedim(1, -1)


def close(a, b, bound=1e-5):
    return distance(a, b) <= bound


def large(vae, rows=12, columns=5, seed=0):
    """A latent of more strips than one."""
    return torch.randn(2, vae.latent_channels, rows, columns, generator=torch.Generator().manual_seed(seed))


def test_stock_nodes_give_the_official_result(nodes, vae, golden):
    _, io = golden
    (image,) = nodes.VAEDecode().decode(vae, {"samples": io["latent"]})
    assert close(image, as_image(io["reconstruction"]))
    (latent,) = nodes.VAEEncode().encode(vae, as_image(io["image"]))
    # The picture lies within 0..1 exactly up to rounding.
    assert close(latent["samples"], io["latent"], 1e-4)


def test_tiled_nodes_give_what_the_others_give(nodes, vae):
    latent = large(vae)
    (image,) = nodes.VAEDecode().decode(vae, {"samples": latent})
    size = 8 * vae.config.factor
    (tiled,) = nodes.VAEDecodeTiled().decode(vae, {"samples": latent}, size, overlap=size // 4)
    assert close(tiled, image)
    (encoded,) = nodes.VAEEncode().encode(vae, image)
    (tiled,) = nodes.VAEEncodeTiled().encode(vae, image, size, overlap=size // 4)
    assert close(tiled["samples"], encoded["samples"])


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_strips_of_any_height(vae, rows):
    latent = large(vae)
    image = vae.decode(latent)
    with vae.first_stage_model.strips(rows):
        assert close(vae.decode(latent), image)
        assert vae.encode(image).shape == latent.shape


def test_free_memory_decides(vae, autoencoder, monkeypatch):
    heights = []
    real = vae.first_stage_model.network.decode

    def decode(latent, rows, progress):
        heights.append(rows)
        return real(latent, rows=rows, progress=progress)

    monkeypatch.setattr(vae.first_stage_model.network, "decode", decode)
    latent = large(vae, rows=32, columns=32)
    image = vae.decode(latent)
    config = vae.config
    whole = autoencoder.peak_bytes(config, "decode", 32, 32, None, torch.float32)
    monkeypatch.setattr(autoencoder.management, "get_free_memory", lambda *args: whole // 2)
    small = vae.decode(latent[:1])
    assert heights[0] is None and heights[-1] < 32
    assert close(small, image[:1])


def test_memory_is_asked_for_honestly(vae, autoencoder, monkeypatch):
    shape = (1, vae.latent_channels, 64, 64)
    whole = autoencoder.peak_bytes(vae.config, "decode", 64, 64, None, torch.float32)
    assert vae.memory_used_decode(shape, torch.float32) == whole
    monkeypatch.setattr(autoencoder.management, "get_total_memory", lambda *args: whole)
    assert vae.memory_used_decode(shape, torch.float32) < whole
    assert vae.memory_used_encode((1, 3, 64 * vae.config.factor, 64 * vae.config.factor), torch.float32) > 0


def test_out_of_memory_is_met_with_small_strips(nodes, vae, monkeypatch):
    import comfy.model_management as management

    latent = large(vae)
    image = vae.decode(latent)
    real = vae.first_stage_model.network.decode
    heights = []

    def decode(latent, rows, progress):
        heights.append(rows)
        if rows is None:
            raise management.OOM_EXCEPTION("out of memory")
        return real(latent, rows=rows, progress=progress)

    monkeypatch.setattr(vae.first_stage_model.network, "decode", decode)
    assert close(vae.decode(latent), image)
    assert heights[0] is None and len(heights) > 1


def test_interrupted_between_strips(vae, autoencoder, monkeypatch):
    import comfy.model_management as management

    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 3:
            raise management.InterruptProcessingException()

    latent = large(vae)
    image = vae.decode(latent)
    with monkeypatch.context() as patch, vae.first_stage_model.strips(1):
        patch.setattr(autoencoder.management, "throw_exception_if_processing_interrupted", interrupt)
        with pytest.raises(management.InterruptProcessingException):
            vae.decode(latent)
    assert torch.equal(vae.decode(latent), image)


def test_wrong_channels(nodes, vae):
    with pytest.raises(ValueError, match=f"latent of {vae.latent_channels} channels .*, found 4"):
        nodes.VAEDecode().decode(vae, {"samples": torch.zeros(1, 4, 8, 8)})


def test_less_than_a_latent_pixel(nodes, vae):
    side = vae.config.factor
    with pytest.raises(ValueError, match=f"expected at least {side} x {side}"):
        nodes.VAEEncode().encode(vae, torch.zeros(1, side - 1, 64, 3))


def test_sizes_that_do_not_fit_are_cut_in_the_middle(nodes, vae):
    side = vae.config.factor
    image = torch.rand(1, 3 * side + 5, 4 * side + 3, 3, generator=torch.Generator().manual_seed(1))
    (found,) = nodes.VAEEncode().encode(vae, image)
    (expected,) = nodes.VAEEncode().encode(vae, image[:, 2 : 2 + 3 * side, 1 : 1 + 4 * side])
    assert torch.equal(found["samples"], expected["samples"])


def test_precision(autoencoder, golden, monkeypatch):
    path, io = golden
    exact = autoencoder.load(path, "auto", "fp32")
    half = autoencoder.load(path, "auto", "bf16")
    assert (exact.vae_dtype, half.vae_dtype) == (torch.float32, torch.bfloat16)
    found, expected = half.decode(io["latent"]), exact.decode(io["latent"])
    assert 0 < (found - expected).norm() / expected.norm() < 0.05
    # ComfyUI's option for half-precision VAEs would ask for a type in which these networks may overflow.
    monkeypatch.setattr(autoencoder.management, "vae_dtype", lambda *args: torch.float16)
    assert autoencoder.load(path).vae_dtype == torch.float32


def test_a_second_patcher_of_the_same_file(vae):
    make, arguments = vae.patcher.cached_patcher_init
    other = make(*arguments, disable_dynamic=True)
    assert other.model is not vae.first_stage_model
    latent = large(vae)
    assert torch.equal(other.model.decode(latent), vae.first_stage_model.decode(latent))


def saved_alone(vae, folder):
    saver = importlib.import_module("comfy_extras.nodes_model_merging").VAESave()
    saver.output_dir = str(folder)
    saver.save(vae, "vae")


def saved_with_a_model(vae, folder):
    saver = importlib.import_module("comfy_extras.nodes_model_merging").CheckpointSave()
    saver.output_dir = str(folder)
    tiny = importlib.import_module("dit_accel.tests.comfy.tiny")
    saver.save(tiny.CASES[0].model(), None, vae, "whole")


@pytest.mark.parametrize("save", [saved_alone, saved_with_a_model])
def test_what_saving_nodes_write_loads_again(autoencoder, vae, golden, tmp_path, save):
    save(vae, tmp_path)
    (path,) = tmp_path.iterdir()
    again = autoencoder.load(path, "auto", "fp32")
    assert again.config == vae.config
    latent = large(vae)
    assert torch.equal(again.decode(latent), vae.decode(latent))
    # Those of MIT's code, which made the golden file.
    assert load_file(golden[0]).keys() <= {name.removeprefix("vae.") for name in load_file(path)}


def test_what_saving_nodes_write_loads_in_diffusers(vae, golden, tmp_path):
    from diffusers import AutoencoderDC
    from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

    saved_alone(vae, tmp_path)
    (path,) = tmp_path.iterdir()
    model = AutoencoderDC(**diffusers_settings(vae.config)).eval()
    model.load_state_dict(convert_autoencoder_dc_checkpoint_to_diffusers(load_file(path)))
    _, io = golden
    with torch.no_grad():
        assert close(model.decode(io["latent"]).sample, io["reconstruction"])
        assert close(model.encode(io["image"]).latent, io["latent"])
