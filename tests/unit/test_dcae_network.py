"""The autoencoder at once: MIT's own results, diffusers' in every make-up, and what must hold whatever the weights."""

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import load_file

from dit_accel.accel.dcae.checkpoint import read
from dit_accel.accel.dcae.keys import DIFFUSERS, to_ours
from dit_accel.accel.dcae.linear_attention import LinearAttention
from dit_accel.accel.dcae.network import DCAE
from dit_accel.accel.dcae.streaming import cut
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.dcae_files import TINY, diffusers_settings, golden
from dit_accel.tests.support.dcae_networks import VARIANTS, latent, picture, random_network


@pytest.fixture(params=VARIANTS)
def config(request):
    return VARIANTS[request.param]


@pytest.mark.parametrize("which", TINY)
def test_mits_own_latent_and_reconstruction(which):
    config, tensors = read(golden(which))
    network = DCAE(config).eval()
    network.load_state_dict(tensors)
    expected = load_file(golden(which).with_stem(golden(which).stem + "_io"))
    with torch.inference_mode():
        assert_close(network.encode(expected["image"]), expected["latent"], units=32)
        assert_close(network.decode(expected["latent"]), expected["reconstruction"], units=32)


def test_diffusers_with_the_same_weights(config):
    settings = diffusers_settings(config)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = AutoencoderDC(**settings).eval().requires_grad_(False)
        for name, value in theirs.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.ndim == 1:
                value.add_(torch.randn_like(value), alpha=0.2)
    ours = DCAE(config).eval()
    ours.load_state_dict(to_ours(theirs.state_dict(), config, DIFFUSERS))
    # 2 x 3 tokens and fewer: diffusers, like MIT's code, has another formula for few tokens, ours has one.
    for height, width in ((7, 5), (2, 3), (1, 1)):
        x, z = picture(config, height, width), latent(config, height, width)
        assert_close(ours.encode(x), theirs.encode(x).latent, units=32)
        assert_close(ours.decode(z), theirs.decode(z).sample, units=32)


def test_images_of_a_batch_do_not_see_each_other(config):
    network = random_network(config)
    z = latent(config, 3, 5)
    each = torch.cat([network.decode(one) for one in z.split(1)])
    assert_close(network.decode(z), each, units=32)


def attention(scales=()):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return LinearAttention(16, scales, 8, torch.nn).requires_grad_(False)


def attend(module, x):
    return next(module(cut(x, None)).tensors)


@pytest.mark.parametrize("sides", [(9, 7), (4, 8), (3, 3)])
@pytest.mark.parametrize("scales", [(), (5,)])
def test_attention_is_that_of_every_pair_of_tokens(sides, scales):
    module = attention(scales)
    x = torch.randn(2, 16, *sides, generator=torch.Generator().manual_seed(5))
    heads = [module.qkv(x)]
    heads += [scale.grouped(scale.depthwise(heads[0])) for scale in module.scales]
    q, k, v = torch.cat(heads, 1).flatten(2).unflatten(1, (-1, 3, 8)).unbind(2)
    weight = k.relu().mT @ q.relu()
    pairs = v @ (weight / (weight.sum(2, keepdim=True) + 1e-15))
    out = module.proj(pairs.reshape(2, -1, *sides))
    out = out / (out.square().mean(1, keepdim=True) + 1e-5).sqrt()
    assert_close(attend(module, x), x + out, units=32)


def test_attention_without_scales_moves_with_its_tokens():
    module = attention()
    x = torch.randn(1, 16, 6, 7, generator=torch.Generator().manual_seed(5))
    order = torch.randperm(42, generator=torch.Generator().manual_seed(6))
    moved = x.flatten(2)[:, :, order].unflatten(2, (6, 7))
    assert_close(attend(module, moved).flatten(2), attend(module, x).flatten(2)[:, :, order], units=32)


@pytest.mark.parametrize("variant", ["in", "sana"])
def test_without_weights_the_shortcuts_are_left(variant):
    """A step down averages groups of channels of 2 x 2 pixels, a step up repeats them; index by index."""
    config = VARIANTS[variant]
    network = random_network(config)
    for name, value in network.named_parameters():
        if name != "encoder.conv_in.weight":
            value.zero_()
    x = picture(config, 2, 3)
    first = network.encoder.conv_in(x)
    if not config.encoder[0].depth:
        first = torch.nn.functional.pixel_unshuffle(first, 2)
    mean = first
    for stage in config.encoder[1 if config.encoder[0].depth else 2 :]:
        mean = halved_by_hand(mean, stage.width)
    mean = mean.unflatten(1, (config.latent_channels, -1)).mean(2)
    assert_close(network.encode(x), mean, units=32)
    z = latent(config, 2, 3)
    seen = []
    network.decoder.norm_out.register_forward_pre_hook(lambda _, x: seen.append(x[0].clone()))
    network.decode(z)
    repeated = z.repeat_interleave(config.decoder[-1].width // config.latent_channels, 1)
    for stage in reversed(config.decoder[0 if config.decoder[0].depth else 1 : -1]):
        repeated = doubled_by_hand(repeated, stage.width)
    assert_close(seen[0], repeated, units=32)


def doubled_by_hand(x, channels):
    batch, inside, height, width = x.shape
    out = torch.zeros(batch, channels, 2 * height, 2 * width)
    for channel in range(4 * channels):
        target, (dy, dx) = channel // 4, divmod(channel % 4, 2)
        out[:, target, dy::2, dx::2] = x[:, channel * inside // (4 * channels)]
    return out


def halved_by_hand(x, channels):
    batch, inside, height, width = x.shape
    group = 4 * inside // channels
    out = torch.zeros(batch, channels, height // 2, width // 2)
    for channel in range(4 * inside):
        source, (dy, dx) = channel // 4, divmod(channel % 4, 2)
        out[:, channel // group] += x[:, source, dy::2, dx::2] / group
    return out


def test_bf16_stays_near_fp32_and_attends_in_fp32(config):
    network, z = random_network(config), latent(config, 4, 6)
    exact = network.decode(z)
    out = network.to(torch.bfloat16).decode(z.bfloat16())
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).norm() < 0.05 * exact.norm()


def test_sides_that_do_not_fit():
    config = VARIANTS["sana"]
    with pytest.raises(ValueError, match="multiples of 8, found 16 x 20"):
        random_network(config).encode(torch.zeros(1, 3, 16, 20))
