"""Preview factors: the fit finds a map that is there, and the command writes what the pack reads."""

import json
from dataclasses import replace

import numpy
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from dit_accel.accel.cli.main import main
from dit_accel.accel.dcae.checkpoint import read
from dit_accel.accel.dcae.keys import DIFFUSERS, MIT, from_ours, to_ours
from dit_accel.accel.dcae.network import DCAE
from dit_accel.accel.dcae.preview import KIND, VERSION, fit, shrink
from dit_accel.tests.support.closeness import distance
from dit_accel.tests.support.dcae_files import diffusers_settings, golden

SCALE = 0.25


def drawn(count, channels=6, seed=0):
    """Pictures in a linear map of latents of different sizes, and the map."""
    generator = torch.Generator().manual_seed(seed)
    factors, bias = torch.randn(channels, 3, generator=generator), torch.randn(3, generator=generator)
    latents = [torch.randn(channels, 4 + index, 5, generator=generator) for index in range(count)]
    colours = [torch.einsum("chw,cr->rhw", latent, factors) + bias[:, None, None] for latent in latents]
    return latents, [F.interpolate(colour[None], scale_factor=8)[0] for colour in colours], factors, bias


def test_it_finds_the_map():
    latents, pictures, factors, bias = drawn(6)
    found = fit(latents, pictures)
    assert distance(found.factors, factors) < 1e-3
    assert distance(found.bias, bias) < 1e-3
    assert found.r2 > 0.99999
    small = fit(
        latents, [shrink(picture, *latent.shape[1:]) for latent, picture in zip(latents, pictures, strict=True)]
    )
    assert distance(small.factors, found.factors) < 1e-5


def test_noise_is_told_by_r2():
    latents, pictures, factors, _ = drawn(40)
    generator = torch.Generator().manual_seed(1)
    noisy = []
    for latent, picture in zip(latents, pictures, strict=True):
        noise = torch.randn(3, *latent.shape[1:], generator=generator)
        noisy.append(picture + shrink(noise, *picture.shape[1:]))
    found = fit(latents, noisy)
    signal = factors.square().sum().item() / 3
    assert found.r2 == pytest.approx(signal / (signal + 1), abs=0.03)


def test_channels_that_are_the_same_get_equal_parts():
    latents, pictures, factors, _ = drawn(6)
    found = fit([torch.cat([latent, latent[:1]]) for latent in latents], pictures)
    assert distance(found.factors[0], found.factors[-1]) < 1e-3
    assert distance(found.factors[0] * 2, factors[0]) < 1e-2


def test_too_little_to_fit_is_said():
    latents, pictures, _, _ = drawn(1)
    with pytest.raises(ValueError, match="more than 20 latent pixels in all, found 20"):
        fit([torch.randn(20, 4, 5)], pictures)
    with pytest.raises(ValueError, match="more than one colour"):
        fit(latents, [torch.zeros(3, 32, 40)])


@pytest.fixture
def vae(tmp_path):
    """A tiny autoencoder whose scale its config.json tells."""
    folder = tmp_path / "vae"
    folder.mkdir()
    config = replace(read(golden("sana"))[0], scale=SCALE)
    tensors = to_ours(load_file(golden("sana")), config, MIT)
    save_file(from_ours(tensors, config, DIFFUSERS), folder / "model.safetensors")
    settings = {"_class_name": "AutoencoderDC", **diffusers_settings(config)}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder / "model.safetensors"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = numpy.random.default_rng(0)
    for index, size in enumerate(((40, 56, 3), (45, 37, 3), (24, 24))):
        Image.fromarray(generator.integers(0, 256, size, numpy.uint8)).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def fit_preview(vae, pictures, output, *more):
    return main(["fit-preview", "--vae", str(vae), "--pictures", str(pictures), "--output", str(output), *more])


def test_the_command_writes_the_fit_of_scaled_latents(vae, pictures, tmp_path, capsys):
    output = tmp_path / "factors.json"
    assert fit_preview(vae, pictures, output) == 0
    content = json.loads(output.read_text())
    assert (content["format"], content["version"]) == (KIND, VERSION) == ("dit-accel/preview", 1)
    assert (content["autoencoder"], content["pictures"]) == ("f8c8", 3)
    assert "f8c8, 3 pictures" in capsys.readouterr().out

    config, tensors = read(vae)
    network = DCAE(config).eval()
    network.load_state_dict(tensors)
    # Cut around the middle to multiples of 8: [56, 40] whole, [37, 45] to [32, 40], and grey.
    cuts = ((slice(0, 40), slice(0, 56)), (slice(2, 42), slice(2, 34)), (slice(0, 24), slice(0, 24)))
    latents, colours = [], []
    for index, cut in enumerate(cuts):
        pixels = numpy.asarray(Image.open(pictures / f"{index}.png").convert("RGB"))[cut]
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1
        with torch.inference_mode():
            latents.append(network.encode(picture[None])[0] * SCALE)
        colours.append(picture)
    expected = fit(latents, colours)
    assert distance(torch.tensor(content["factors"]), expected.factors) < 1e-5
    assert distance(torch.tensor(content["bias"]), expected.bias) < 1e-5
    assert content["r2"] == pytest.approx(expected.r2, abs=1e-5)


def fails(capsys, *arguments):
    assert fit_preview(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_mistakes_are_one_line(vae, pictures, tmp_path, capsys):
    output = tmp_path / "factors.json"
    assert "--pictures: expected a folder, found none at" in fails(capsys, vae, tmp_path / "none", output)
    assert "--pictures: expected pictures (.png" in fails(capsys, vae, vae.parent, output)
    assert "--output: expected a file, found the folder" in fails(capsys, vae, pictures, tmp_path)
    assert "--vae: " in fails(capsys, tmp_path / "none.safetensors", pictures, output)
    assert "--vae: expected an autoencoder whose scale is known" in fails(capsys, golden("sana"), pictures, output)
    assert "which was asked for" in fails(capsys, vae, pictures, output, "--variant", "lite-f32c32")
    Image.new("RGB", (9, 7)).save(pictures / "small.png")
    assert "expected at least 8 x 8 pixels, found" in fails(capsys, vae, pictures, output)
    (pictures / "small.png").write_bytes(b"no picture")
    assert f"cannot read {pictures / 'small.png'}" in fails(capsys, vae, pictures, output)
    assert not output.exists()


def test_black_pictures_fit_nothing(vae, tmp_path, capsys):
    folder = tmp_path / "black"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    assert "--pictures: expected more than one colour" in fails(capsys, vae, folder, tmp_path / "factors.json")
