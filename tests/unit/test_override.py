"""The override's contract, call by call: every layout it may meet, and every call that is not its own."""

from dataclasses import replace

import pytest
import torch

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.comfy.sparse import override
from dit_accel.kernels import registry
from dit_accel.tests.support.closeness import distance
from dit_accel.tests.support.forwards import make_forward, make_run, outside_comfyui

LAYOUT = TokenLayout((4, 8, 8), prefix=5)
HEADS, DIM = 2, 64


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch):
    outside_comfyui(monkeypatch)
    monkeypatch.setattr(registry, "choose", lambda *_, **__: (None, "no GPU"))


def tokens(seed: int, length: int = LAYOUT.total) -> torch.Tensor:
    return torch.randn(1, length, HEADS * DIM, generator=torch.Generator().manual_seed(seed))


def split(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, DIM)).transpose(1, 2)


def dense_function(q, k, v, heads, **_):
    return torch.zeros(q.shape)


def call(q, k, v, *args, forward=None, func=None, **kwargs):
    """The override with a fresh forward; returns its statistics and the output."""
    forward = forward or make_forward(make_run("reference"), LAYOUT, branches=("a",))
    out = override.attention_override(
        func, q, k, v, *args, transformer_options={override.FORWARD_KEY: forward}, _inside_attn_wrapper=True, **kwargs
    )
    return forward.statistics, out


@pytest.mark.parametrize("split_output", [False, True])
@pytest.mark.parametrize("split_input", [False, True])
def test_every_layout_gives_the_same_attention(split_input, split_output):
    flat = [tokens(seed) for seed in range(3)]
    _, expected = call(*flat, heads=HEADS)
    inputs = [split(x) for x in flat] if split_input else flat
    statistics, out = call(*inputs, HEADS, skip_reshape=split_input, skip_output_reshape=split_output)
    assert statistics.sparse == {"reference": 1}
    assert torch.equal(out, split(expected) if split_output else expected)
    assert out.dtype == flat[0].dtype


def test_the_models_own_scale_is_used():
    flat = [tokens(seed) for seed in range(3)]
    assert torch.equal(call(*flat, HEADS, scale=DIM**-0.5)[1], call(*flat, HEADS)[1])
    assert distance(call(*flat, HEADS, scale=0.01)[1], call(*flat, HEADS)[1]) > 1e-2


def dense_calls():
    """Reason -> q, k, v and keywords of a call that must reach the original function untouched."""
    q, k, v = (tokens(seed) for seed in range(3))
    short = tokens(3, 40)
    yield reasons.CROSS_ATTENTION, (q, short, short), {}
    yield reasons.OTHER_STREAM, (short, short, short), {}
    yield reasons.MASK, (q, k, v), {"mask": torch.zeros(1, 1, LAYOUT.total)}
    yield reasons.FULL_PRECISION, (q, k, v), {"low_precision_attention": False}
    yield reasons.GROUPED_QUERY, (q, k[..., :DIM], v[..., :DIM]), {"enable_gqa": True}
    yield reasons.GRADIENTS, (q.clone().requires_grad_(), k, v), {}
    strided = torch.randn(1, HEADS, DIM, LAYOUT.total).transpose(-1, -2)
    yield reasons.STRIDED, (strided, split(k), split(v)), {"skip_reshape": True}


@pytest.mark.parametrize(("reason", "inputs", "kwargs"), dense_calls(), ids=[reason for reason, *_ in dense_calls()])
@pytest.mark.parametrize("chained", [False, True])
def test_other_calls_reach_the_original_function(reason, inputs, kwargs, chained):
    received = []

    def func(*args, **seen):
        received.append((args, seen))
        return "dense"

    def previous(function, *args, **seen):
        assert function is func
        return function(*args, **seen)

    forward = make_forward(make_run("reference"), LAYOUT, previous=previous if chained else None)
    statistics, out = call(*inputs, HEADS, forward=forward, func=func, **kwargs)
    assert out == "dense"
    assert statistics.dense == {reason: 1}
    assert not statistics.sparse
    ((args, seen),) = received
    assert all(a is b for a, b in zip(args, inputs, strict=False))
    assert args[3] == HEADS
    assert seen["_inside_attn_wrapper"] is True
    assert seen["transformer_options"][override.FORWARD_KEY] is forward
    assert all(seen[name] is value for name, value in kwargs.items())


def test_without_a_kernel_the_default_is_dense():
    forward = make_forward(make_run("dense"), LAYOUT, branches=("a",))
    flat = [tokens(seed) for seed in range(3)]
    statistics, out = call(*flat, HEADS, forward=forward, func=lambda *_, **__: "dense")
    assert out == "dense"
    assert statistics.dense == {f"{reasons.NO_KERNEL}: no GPU": 1}


def test_calls_of_a_model_without_block_numbers_are_counted():
    run = make_run("reference")
    run.budget = replace(run.budget, dense_blocks=frozenset({1}))
    forward = make_forward(run, LAYOUT, branches=("a",))
    other = tokens(9, length=7)
    for seed in range(3):
        call(*[tokens(seed)] * 3, HEADS, forward=forward, func=dense_function)
        call(other, other, other, HEADS, forward=forward, func=dense_function)
    assert forward.statistics.dense == {reasons.DENSE_BLOCK: 1, reasons.OTHER_STREAM: 3}
