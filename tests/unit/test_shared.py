"""One quantisation for q, k and v: when it is made again, when not, and that no number changes."""

import gc
import weakref
from dataclasses import replace

import comfy_kitchen
import pytest
import torch

from dit_accel.accel.quant import linear
from dit_accel.accel.quant.compute import FP8, INT8, W4A4, W4A16
from dit_accel.accel.quant.linear import quantised_linear
from dit_accel.accel.quant.shared import _latest, shared, siblings
from dit_accel.accel.quant.weight4 import Weight4
from dit_accel.tests.support.interpreter import fp8_as_hardware_rounds_it  # noqa: F401

Q, K, V = (f"blocks.0.attn.{name}" for name in "qkv")
PATHS = [W4A4, INT8, FP8]


def weight(seed, *, smooth, down):
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (32, 64), dtype=torch.int8, generator=random)
    scale = torch.rand(2, 32, generator=random).half() / 8
    up = torch.randn(32, 16, generator=random).half()
    return Weight4(codes, scale, smooth=smooth, proj_down=down, proj_up=up)


@pytest.fixture
def attention():
    """q, k, v and o of one block, and q of another; the smoothing and down-projection of q, k, v are equal copies."""
    random = torch.Generator().manual_seed(0)
    smooth, down = torch.rand(128, generator=random).half() + 0.5, torch.randn(128, 16, generator=random).half()
    layers = {
        f"blocks.0.attn.{name}": weight(i, smooth=smooth.clone(), down=down.clone()) for i, name in enumerate("qkv")
    }
    layers["blocks.0.attn.o"] = weight(3, smooth=smooth * 2, down=down)
    layers["blocks.1.attn.q"] = weight(4, smooth=smooth, down=down)
    return layers


@pytest.fixture
def made(monkeypatch):
    """Inputs that were quantised, in order."""
    calls = []
    for module, name in ((comfy_kitchen, "quantize_svdquant_w4a4"), (linear, "quantise_rows")):
        real = getattr(module, name)

        def count(x, *args, real=real, **options):
            if x.shape[0] != 32:  # not the weight
                calls.append(x)
            return real(x, *args, **options)

        monkeypatch.setattr(module, name, count)
    return calls


def tokens(seed=9):
    return torch.randn(2, 4, 128, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_who_shares(attention):
    group = (Q, K, V)
    assert {name: one.group for name, one in siblings(attention, W4A4).items()} == dict.fromkeys(group, group)
    assert siblings(attention, W4A16) == {}
    other_down = replace(attention[V], proj_down=attention[V].proj_down + 1)
    apart = attention | {V: other_down}
    assert set(siblings(apart, W4A4)) == {Q, K}
    assert set(siblings(apart, INT8)) == {Q, K, V}
    assert set(siblings(attention | {V: replace(attention[V], unsigned_from=0)}, W4A4)) == {Q, K}
    assert set(siblings(attention | {V: replace(attention[V], smooth=None)}, INT8)) == {Q, K}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("inference", [True, False])
def test_q_k_v_share_one(attention, made, path, inference):
    found = siblings(attention, path)
    with torch.inference_mode(inference):
        x = tokens()
        alone = [quantised_linear(x, attention[name], None, path) for name in (Q, K, V)]
        assert len(made) == 3
        made.clear()
        together = [quantised_linear(x, attention[name], None, path, sibling=found[name]) for name in (Q, K, V)]
    assert len(made) == 1
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert _latest.cached is None


@pytest.mark.parametrize("path", PATHS)
def test_lora_on_one_of_them_disturbs_nothing(attention, made, path):
    found = siblings(attention, path)
    random = torch.Generator().manual_seed(1)
    pair = [(torch.randn(128, 5, generator=random), torch.randn(32, 5, generator=random))]
    x = tokens()
    extras = {Q: pair, K: [], V: []}
    alone = [quantised_linear(x, attention[name], None, path, extras[name]) for name in extras]
    made.clear()
    together = [quantised_linear(x, attention[name], None, path, extras[name], sibling=found[name]) for name in extras]
    assert len(made) == 1
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_another_input_or_a_changed_one_is_quantised_again(attention, made):
    found = siblings(attention, INT8)
    x, copy = tokens(), tokens()
    quantised_linear(x, attention[Q], None, INT8, sibling=found[Q])
    quantised_linear(copy, attention[K], None, INT8, sibling=found[K])
    assert len(made) == 2
    copy.mul_(2)
    out = quantised_linear(copy, attention[V], None, INT8, sibling=found[V])
    assert len(made) == 3
    assert torch.equal(out, quantised_linear(copy.clone(), attention[V], None, INT8))


def test_an_inference_tensor_that_is_filled_again(attention, made):
    """It counts no changes; but q asks again only in the next forward."""
    found = siblings(attention, INT8)
    with torch.inference_mode():
        x = tokens()
        for _ in range(2):
            out = quantised_linear(x, attention[Q], None, INT8, sibling=found[Q])
            quantised_linear(x, attention[K], None, INT8, sibling=found[K])
            assert torch.equal(out, quantised_linear(x.clone(), attention[Q], None, INT8))
            quantised_linear(x, attention[Q], None, INT8, sibling=found[Q])
            x.mul_(3)


def test_another_layer_in_between_ends_it(attention, made):
    """comfy-kitchen may have written over the buffers."""
    found = siblings(attention, W4A4)
    x = tokens()
    quantised_linear(x, attention[Q], None, W4A4, sibling=found[Q])
    quantised_linear(tokens(8), attention["blocks.0.attn.o"], None, W4A4)
    quantised_linear(x, attention[K], None, W4A4, sibling=found[K])
    assert len(made) == 3


def test_nothing_outlives_its_input(attention):
    found = siblings(attention, INT8)
    x = tokens()
    quantised_linear(x, attention[Q], None, INT8, sibling=found[Q])
    codes = weakref.ref(_latest.cached.result[0])
    del x
    gc.collect()
    assert _latest.cached is None and codes() is None


def test_an_address_that_is_used_again_is_no_match(attention):
    found = siblings(attention, INT8)
    storage = torch.zeros(4)
    first, second = storage.view(4), storage.view(4)
    assert shared(first, found[Q], lambda: 1) == 1
    assert shared(second, found[K], lambda: 2) == 2


def test_off_while_compiling(attention, monkeypatch):
    found = siblings(attention, INT8)
    x = tokens()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert shared(x, found[Q], lambda: 1) == 1
    assert shared(x, found[K], lambda: 2) == 2
    assert _latest.cached is None


@pytest.mark.parametrize("path", [W4A16, W4A4, INT8])
def test_torch_compile_traces_it(attention, path):
    found = siblings(attention, path)
    x = tokens()

    def both(x):
        return [quantised_linear(x, attention[name], None, path, sibling=found.get(name)) for name in (Q, K)]

    compiled = torch.compile(both, backend="eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(x), both(x), strict=True))
