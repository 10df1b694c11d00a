"""Layers stacked, side by side and cut compute what their parts do."""

from dataclasses import replace

import pytest
import torch

from dit_accel.accel.quant.joining import Linear, cut, side_by_side, stack, swap_halves
from dit_accel.accel.quant.weight4 import E2M1, INT4, Weight4, dequantise, shift_bias
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.svdquant import quantise


def some(rows: int, columns: int, seed: int, **about) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(columns, generator=generator).add(0.5).bfloat16()
    weight = quantise(torch.randn(rows, columns, generator=generator), smooth, **about)
    return Linear(f"layer{seed}", weight, torch.randn(rows, generator=generator).bfloat16())


def smoothed_like(linear: Linear, other: Linear) -> Linear:
    return linear._replace(weight=replace(linear.weight, smooth=other.weight.smooth.clone()))


VARIANTS = [
    {"grid": INT4},
    {"grid": INT4, "unsigned": True},
    {"grid": E2M1},
    {"grid": E2M1, "by_channel": True},
]


@pytest.mark.parametrize("about", VARIANTS, ids=str)
def test_stacked(about):
    a, b = some(96, 128, 1, **about), some(32, 128, 2, rank=32, **about)
    b = smoothed_like(b, a)
    (both,) = stack([a, b])
    assert_close(dequantise(both.weight), torch.cat([dequantise(a.weight), dequantise(b.weight)]))
    assert torch.equal(both.bias, torch.cat([a.bias, b.bias]))
    assert both.weight.rank == 16 + 32 and both.weight.smooth is a.weight.smooth
    assert both.weight.unsigned_from == a.weight.unsigned_from
    without = stack([a, b._replace(bias=None)])[0].bias
    assert torch.equal(without, torch.cat([a.bias.float(), torch.zeros(32)]))


@pytest.mark.parametrize("about", VARIANTS, ids=str)
def test_joined_with_and_without_a_low_rank_part(about):
    a, b = some(96, 128, 1, **about), smoothed_like(some(96, 128, 2, **about), some(96, 128, 1))
    b = b._replace(weight=replace(b.weight, proj_down=None, proj_up=None))
    for pair in ((a, b), (b, a)):
        dense = [dequantise(part.weight) for part in pair]
        (stacked,), (beside,) = stack(pair), side_by_side(pair)
        assert_close(dequantise(stacked.weight), torch.cat(dense))
        assert_close(dequantise(beside.weight), torch.cat(dense, dim=1))
        assert stacked.weight.rank == beside.weight.rank == 16
        assert stacked.weight.proj_down.dtype == beside.weight.proj_up.dtype == a.weight.proj_down.dtype


@pytest.mark.parametrize("about", VARIANTS, ids=str)
def test_cut_and_stacked_again(about):
    whole = some(96, 128, 1, **about)
    parts = cut(whole, 3)
    for index, part in enumerate(parts):
        assert_close(dequantise(part.weight), dequantise(whole.weight)[32 * index : 32 * (index + 1)])
        assert part.weight.smooth is whole.weight.smooth and part.weight.proj_down is whole.weight.proj_down
        assert torch.equal(part.bias, whole.bias[32 * index : 32 * (index + 1)])
        assert part.weight.unsigned_from == whole.weight.unsigned_from
    (again,) = stack(parts)
    assert again.weight.rank == whole.weight.rank
    assert torch.equal(dequantise(again.weight), dequantise(whole.weight))


@pytest.mark.parametrize("about", VARIANTS, ids=str)
def test_side_by_side(about):
    a, b = some(96, 128, 1, **about), some(96, 192, 2, rank=32, **about)
    (both,) = side_by_side([a, b])
    assert_close(dequantise(both.weight), torch.cat([dequantise(a.weight), dequantise(b.weight)], dim=1))
    assert torch.equal(both.bias, a.bias.float() + b.bias.float())
    assert both.weight.rank == 16 + 32


def test_side_by_side_without_smoothing_and_low_rank():
    a, b = some(96, 128, 1), some(96, 192, 2)
    bare = replace(a.weight, smooth=None, proj_down=None, proj_up=None)
    (both,) = side_by_side([Linear("bare", bare, None), b])
    assert_close(dequantise(both.weight), torch.cat([dequantise(bare), dequantise(b.weight)], dim=1))
    assert torch.equal(both.bias, b.bias.float())


def test_tensor_scales_meet_in_the_smoothing():
    """The first layer keeps its numbers, so that inputs divided by them stay of the size they were."""
    a, b = some(96, 128, 1, grid=E2M1), some(96, 192, 2, grid=E2M1)
    b = b._replace(weight=replace(b.weight, channel_scale=3 * a.weight.channel_scale))
    weight = side_by_side([a, b])[0].weight
    assert torch.equal(weight.channel_scale, a.weight.channel_scale) and weight.scale.dtype == torch.float8_e4m3fn
    assert torch.equal(weight.smooth[:128], a.weight.smooth.float())
    assert_close(weight.smooth[128:], b.weight.smooth.float() / 3)


def test_where_the_unsigned_inputs_begin():
    signed, unsigned = some(96, 128, 1), some(96, 192, 2, unsigned=True)
    assert side_by_side([signed, signed])[0].weight.unsigned_from is None
    (both,) = side_by_side([signed, unsigned])
    assert both.weight.unsigned_from == 128
    assert_close(both.weight.shift, shift_bias(both.weight))
    # What was known of the whole is not taken for what is true of a part.
    part = cut(both, 2)[1].weight
    assert torch.equal(part.shift, shift_bias(part))
    assert side_by_side([unsigned, unsigned])[0].weight.unsigned_from == 0
    assert side_by_side([signed, unsigned, unsigned])[0].weight.unsigned_from == 128
    with pytest.raises(ValueError, match="layer2 and layer1: expected the unsigned inputs to be the last"):
        side_by_side([unsigned, signed])


def test_zeros_are_kept():
    a, b = (
        linear._replace(weight=replace(linear.weight, zero=torch.rand_like(linear.weight.scale)))
        for linear in (some(96, 128, 1), smoothed_like(some(96, 128, 2), some(96, 128, 1)))
    )
    dense = [dequantise(a.weight), dequantise(b.weight)]
    assert_close(dequantise(stack([a, b])[0].weight), torch.cat(dense))
    assert_close(dequantise(side_by_side([a, b])[0].weight), torch.cat(dense, dim=1))
    assert_close(torch.cat([dequantise(part.weight) for part in cut(a, 3)]), dense[0])


def test_plain_layers():
    a, b = (Linear(str(seed), torch.randn(6, 4), torch.randn(6)) for seed in range(2))
    assert torch.equal(stack([a, b])[0].weight, torch.cat([a.weight, b.weight]))
    assert torch.equal(side_by_side([a, b])[0].weight, torch.cat([a.weight, b.weight], dim=1))
    assert torch.equal(torch.cat([part.weight for part in cut(a, 3)]), a.weight)
    swapped = swap_halves(a)
    assert swapped.name == a.name
    assert torch.equal(swapped.weight, torch.cat([a.weight[3:], a.weight[:3]]))
    assert torch.equal(swapped.bias, torch.cat([a.bias[3:], a.bias[:3]]))


@pytest.mark.parametrize("about", VARIANTS, ids=str)
def test_swapped_halves(about):
    whole = some(96, 128, 1, **about)
    swapped = swap_halves(whole)
    assert swapped.name == whole.name
    assert_close(dequantise(swapped.weight), dequantise(whole.weight).roll(48, 0))
    assert torch.equal(swapped.bias, whole.bias.roll(48, 0))


@pytest.mark.parametrize(
    "how, other, what",
    [
        (stack, some(96, 128, 2), "one smoothing of their common input"),
        (stack, some(96, 192, 2), "one number of inputs"),
        (stack, smoothed_like(some(96, 128, 2, unsigned=True), some(96, 128, 1)), "one start of the unsigned inputs"),
        (stack, Linear("layer2", torch.zeros(96, 128), None), "one kind of weight"),
        (side_by_side, some(64, 128, 2), "one number of outputs"),
        (side_by_side, some(96, 128, 2, grid=E2M1), "one grid"),
    ],
)
def test_layers_that_do_not_fit_are_named(how, other, what):
    with pytest.raises(ValueError, match=f"layer1 and layer2: expected {what}"):
        how([some(96, 128, 1), other])


def test_a_cut_that_leaves_a_rest():
    with pytest.raises(ValueError, match="layer1: expected outputs in 5 equal parts, found 96"):
        cut(some(96, 128, 1), 5)


def test_a_weight_without_anything_is_cut():
    bare = Weight4(torch.zeros(6, 32, dtype=torch.int8), torch.ones(1, 6))
    assert [part.weight.shape for part in cut(Linear("bare", bare, None), 2)] == [(3, 64)] * 2
