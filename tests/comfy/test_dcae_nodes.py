"""DC-AE Decode and Encode take every latent and every picture that stock nodes give, and refuse others by name."""

from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "dcae_mit_sana_like.safetensors"
CHANNELS, FACTOR = 8, 8


@pytest.fixture(scope="module")
def vae(comfy):
    from dit_accel.accel.comfy.dcae import autoencoder

    return autoencoder.load(GOLDEN, "auto", "fp32")


@pytest.fixture
def decode(vae):
    from dit_accel.nodes.dcae import DitAccelDCAEDecode

    return lambda samples: DitAccelDCAEDecode.execute(samples, vae, 0).result[0]


@pytest.fixture
def encode(vae):
    from dit_accel.nodes.dcae import DitAccelDCAEEncode

    return lambda pixels: DitAccelDCAEEncode.execute(pixels, vae, 0).result[0]["samples"]


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_the_first_stream_of_a_nested_latent_is_decoded(decode, vae):
    from comfy.nested_tensor import NestedTensor

    import nodes

    latent = random(1, CHANNELS, 2, 3)
    nested = {"samples": NestedTensor((latent, random(1, 8, 4)))}
    assert torch.equal(decode(nested), nodes.VAEDecode().decode(vae, nested)[0])
    assert torch.equal(decode(nested), decode({"samples": latent}))


def test_every_frame_of_a_latent_of_frames_is_decoded(decode):
    frames = random(2, CHANNELS, 3, 2, 2)
    pictures = decode({"samples": frames})
    assert pictures.shape == (6, 2 * FACTOR, 2 * FACTOR, 3)
    for number, (clip, frame) in enumerate((clip, frame) for clip in range(2) for frame in range(3)):
        alone = decode({"samples": frames[clip : clip + 1, :, frame]})[0]
        assert torch.allclose(pictures[number], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        ({}, r"found \[\]"),
        ({"noise_mask": None}, r"found \['noise_mask'\]"),
        ({"samples": None}, r"found \['samples'\]"),
        (None, "found NoneType"),
        ({"samples": random(5)}, r"found \[\[5\]\]"),
        ({"samples": random(CHANNELS, 2, 3)}, r"found \[8, 2, 3\]"),
        ({"samples": random(0, CHANNELS, 2, 3)}, r"found \[0, 8, 2, 3\]"),
        ({"samples": random(1, CHANNELS, 0, 3)}, r"found \[1, 8, 0, 3\]"),
        ({"samples": random(1, CHANNELS, 0, 2, 3)}, r"found \[0, 8, 2, 3\]"),
        ({"samples": random(1, 4, 2, 3)}, "8 channels for DC-AE .*, found 4"),
    ],
    ids=["empty", "mask alone", "none", "no latent", "1-D", "sound", "no batch", "no rows", "no frames", "channels"],
)
def test_a_latent_that_does_not_suit_is_refused_by_name(decode, samples, found):
    with pytest.raises(ValueError, match=f"^samples: .*{found}"):
        decode(samples)


def test_pictures_with_alpha_are_encoded_as_without(encode):
    picture = random(1, 2 * FACTOR, FACTOR, 3)
    assert torch.equal(encode(torch.cat((picture, random(1, 2 * FACTOR, FACTOR, 1)), dim=-1)), encode(picture))


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (random(0, 16, 16, 3), r"\[0, 16, 16, 3\] of float32"),
        (random(16, 16, 3), r"\[16, 16, 3\] of float32"),
        (random(1, 1, 16, 16, 3), r"\[1, 1, 16, 16, 3\] of float32"),
        (random(1, 16, 16, 1), r"\[1, 16, 16, 1\] of float32"),
        (random(1, 16, 16, 3).mul(255).byte(), r"\[1, 16, 16, 3\] of uint8"),
        (random(1, 7, 16, 3), "less in a picture"),
    ],
    ids=["no picture", "3-D", "5-D", "grey", "bytes", "less than a latent pixel"],
)
def test_pixels_that_are_no_pictures_are_refused_by_name(encode, pixels, found):
    with pytest.raises(ValueError, match=f"^pixels: .*{found}"):
        encode(pixels)
