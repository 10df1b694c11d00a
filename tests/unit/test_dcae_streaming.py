"""Strip by strip the result is the same, bit for bit where additions keep their order, and memory stays small."""

import functools

import pytest
import torch

from dit_accel.accel.dcae import layers, linear_attention, streaming
from dit_accel.accel.dcae.config import CONFIGS
from dit_accel.accel.dcae.network import DCAE
from dit_accel.accel.dcae.peak_memory import peak_bytes, rows_for
from dit_accel.kernels.relu_linear_attention import split_heads
from dit_accel.tests.support.closeness import distance
from dit_accel.tests.support.dcae_networks import ONE_ORDER, VARIANTS, latent, picture, random_network
from dit_accel.tests.support.memory import LiveMemory

# Latent sides and rows in a strip: nine strips, an uneven last one, one row, one column, one strip but one row.
SIZES = [(9, 4, 1), (10, 3, 4), (7, 5, 3), (1, 6, 1), (9, 1, 2), (6, 2, 5)]


@pytest.fixture(params=VARIANTS)
def config(request):
    return VARIANTS[request.param]


def both(network, height, width, rows):
    """The larger distance of encode and decode in strips from those at once."""
    x, z = picture(network.config, height, width), latent(network.config, height, width)
    with torch.inference_mode():
        return max(
            distance(network.encode(x, rows), network.encode(x)), distance(network.decode(z, rows), network.decode(z))
        )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_strips_change_nothing(config, size):
    assert both(random_network(config), *size) < 1e-5


def _less(window, start):
    """The rows to carry on, the first of them forgotten."""
    rows = window[:, :, start:].clone()
    rows[:, :, :1] = 0
    return rows


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_one_carried_row_less_shows(config, size, monkeypatch):
    monkeypatch.setattr(streaming, "carried", _less)
    assert both(random_network(config), *size) > 1e-3


@pytest.fixture
def in_one_order(monkeypatch):
    """Libraries add in an order that depends on the size of a strip. Here every sum has one order, and those over
    tokens are made in fp64, where the order is lost when they are rounded."""

    def sums(qkv, *, head_dim, backend):
        _, k, v = split_heads(qkv, head_dim)
        k = k.double().relu()
        return torch.cat([v.double() @ k.mT, k.sum(-1)[:, :, None]], 2)

    def apply(qkv, sums, *, head_dim, backend):
        q = split_heads(qkv, head_dim)[0].relu()
        sums = sums.float()
        out = sum(sums[..., index, None] * q[:, :, None, index] for index in range(head_dim))
        return (out[:, :, :-1] / (out[:, :, -1:] + 1e-15)).reshape(qkv.shape[0], -1, *qkv.shape[2:])

    def mean_square(x):
        return sum(channel * channel for channel in x.split(1, 1)) / x.shape[1]

    monkeypatch.setattr(layers, "mean_square", mean_square)
    monkeypatch.setattr(linear_attention, "kv_sums", sums)
    monkeypatch.setattr(linear_attention, "apply_sums", apply)


@pytest.mark.parametrize("size", [(9, 2, 1), (7, 3, 3)], ids=str)
def test_strips_are_exact_to_the_bit(config, size, in_one_order):
    assert both(random_network(config, operations=ONE_ORDER), *size) == 0


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_progress_reaches_its_end(config, part):
    network = random_network(config)
    x = (picture if part == "encode" else latent)(config, 6, 2)
    for rows in (None, 2):
        calls = []
        getattr(network, part)(x, rows, lambda done, total, calls=calls: calls.append((done, total)))
        done, totals = zip(*calls, strict=True)
        assert done[-1] == totals[-1] and len(set(totals)) == 1
        assert list(done) == sorted(set(done))
        assert len(done) >= 3 if rows else True


def test_an_interrupt_leaves_nothing_behind(config):
    network, z = random_network(config), latent(config, 8, 3)
    before = network.decode(z)
    paddings = [module.padding for module in network.modules() if isinstance(module, torch.nn.Conv2d)]

    def stop(done, total):
        if done > total // 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        network.decode(z, 1, stop)
    assert [module.padding for module in network.modules() if isinstance(module, torch.nn.Conv2d)] == paddings
    assert torch.equal(network.decode(z), before)


@functools.cache
def weightless(name, dtype):
    return DCAE(CONFIGS[name], device="meta", dtype=dtype)


def traced(name, part, height, width, rows, dtype):
    """Bytes alive at most, without weights and input; height and width of the latent."""
    config, network = CONFIGS[name], weightless(name, dtype)
    if part == "decode":
        x = torch.empty(1, config.latent_channels, height, width, device="meta", dtype=dtype)
    else:
        x = torch.empty(1, 3, height * config.factor, width * config.factor, device="meta", dtype=dtype)
    with LiveMemory(x, *network.parameters(), *network.buffers()) as memory:
        getattr(network, part)(x, rows)
    return memory.peak


# Of the whole at once, in strips of 16 latent rows.
DEMANDED = {"f32c32-sana-1.0": 1 / 4, "lite-f32c32": 1 / 2, "f32c32-mix-1.0": 1 / 2, "f32c128-1.5": 1 / 2}


@pytest.mark.spread(1)
@pytest.mark.parametrize("width", [128, 86])
@pytest.mark.parametrize("part", ["encode", "decode"])
@pytest.mark.parametrize("name", DEMANDED)
def test_memory_of_large_pictures(name, part, width):
    whole = traced(name, part, 128, width, None, torch.bfloat16)
    strips = traced(name, part, 128, width, 16, torch.bfloat16)
    assert strips < DEMANDED[name] * whole, f"{strips / whole:.3f} of {whole / 2**30:.2f} GiB"


@pytest.mark.spread(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", ["encode", "decode"])
@pytest.mark.parametrize("name", [*DEMANDED, "f64c128-mix-1.0"])
def test_the_estimate_is_near_what_is_traced(name, part, dtype):
    for height, width, rows in ((16, 24, None), (16, 24, 8), (8, 24, 1)):
        ratio = peak_bytes(CONFIGS[name], part, height, width, rows, dtype) / traced(
            name, part, height, width, rows, dtype
        )
        assert 0.9 < ratio < 1.5, (height, width, rows)


def test_rows_are_the_most_that_fit():
    config = CONFIGS["f32c32-sana-1.0"]
    arguments = config, "decode", 128, 128
    assert rows_for(*arguments, torch.bfloat16, 64e9) is None
    assert rows_for(*arguments, torch.bfloat16, 1e6) == 1
    rows = rows_for(*arguments, torch.bfloat16, 4e9)
    assert peak_bytes(*arguments, rows, torch.bfloat16) <= 4e9 < peak_bytes(*arguments, rows + 1, torch.bfloat16)
