"""Latent formats of DC-AE latents."""

import importlib
import json

import pytest
import torch

from dit_accel.accel.dcae.config import CONFIGS
from dit_accel.accel.dcae.preview import KIND, VERSION
from dit_accel.tests.support.closeness import assert_close

SANA = CONFIGS["f32c32-sana-1.0"]


@pytest.fixture(scope="session")
def latent_format(comfy):
    return importlib.import_module("dit_accel.accel.comfy.dcae.latent_formats").latent_format


def test_scale_once(latent_format):
    found = latent_format(SANA)
    latent = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.process_in(latent), latent * 0.41407)
    assert_close(found.process_out(found.process_in(latent)), latent, units=2)
    assert (found.latent_channels, found.spacial_downscale_ratio) == (32, 32)
    assert found.latent_rgb_factors is None


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.scale])
def test_every_known_scale(latent_format, name):
    found, config = latent_format(CONFIGS[name]), CONFIGS[name]
    expected = config.scale, config.latent_channels, config.factor
    assert (found.scale_factor, found.latent_channels, found.spacial_downscale_ratio) == expected


def test_an_unknown_scale(latent_format):
    with pytest.raises(ValueError, match=r"DC-AE f64c128-1.5: expected a known scale"):
        latent_format(CONFIGS["f64c128-1.5"])


def written(path, **changes):
    content = {
        "format": KIND,
        "version": VERSION,
        "autoencoder": SANA.name,
        "factors": [[0.1, 0.2, 0.3]] * 32,
        "bias": [0.0, 0.1, 0.2],
    }
    path.write_text(json.dumps(content | changes), "utf-8")
    return path


def test_core_previews_with_fitted_factors(latent_format, tmp_path):
    import latent_preview

    found = latent_format(SANA, written(tmp_path / "factors.json"))
    previewer = latent_preview.Latent2RGBPreviewer(found.latent_rgb_factors, found.latent_rgb_factors_bias)
    image = previewer.decode_latent_to_preview(torch.zeros(1, 32, 4, 6))
    assert image.size == (6, 4)
    assert image.getpixel((0, 0)) == tuple(int((value + 1) / 2 * 255) for value in (0.0, 0.1, 0.2))


def test_whole_numbers_are_factors_too(latent_format, tmp_path):
    import latent_preview

    found = latent_format(SANA, written(tmp_path / "factors.json", factors=[[0, 1, 10**300]] * 32, bias=[1, -1, 0]))
    previewer = latent_preview.Latent2RGBPreviewer(found.latent_rgb_factors, found.latent_rgb_factors_bias)
    assert previewer.decode_latent_to_preview(torch.zeros(1, 32, 1, 1)).size == (1, 1)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"format": "dit-accel/profile"}, "dit-accel/preview"),
        ({"version": 9}, "version"),
        ({"autoencoder": "f64c128-in-1.0"}, "f64c128-in-1.0"),
        ({"factors": [[0, 0, 0]] * 4}, "found 4"),
        ({"factors": None}, "found 0"),
        ({"factors": [[0.1, 0.2]] * 32}, r"factors: expected a number for each of 3 colours, found \[0.1, 0.2\]"),
        ({"factors": [[0.1, "0.2", 0.3]] * 32}, "factors: expected a number"),
        ({"factors": [[0.1, True, 0.3]] * 32}, "factors: expected a number"),
        ({"factors": [[0.1, float("nan"), 0.3]] * 32}, "factors: expected a number"),
        ({"bias": None}, "bias: expected a number for each of 3 colours, found None"),
        ({"bias": [0, 0, float("inf")]}, "bias: expected a number"),
        ({"autoencoder": ["f32c32-sana-1.0"]}, "found 32 of"),
    ],
)
def test_factors_of_something_else(latent_format, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words) as failure:
        latent_format(SANA, written(tmp_path / "factors.json", **changes))
    assert "factors.json" in str(failure.value)
