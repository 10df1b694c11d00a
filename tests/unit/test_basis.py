"""Low-rank branches that do not belong to their 4-bit part are found, and honest ones of every kind are not."""

from dataclasses import replace

import pytest
import torch

from dit_accel.accel.quant.basis import misfit
from dit_accel.accel.quant.formats.comfy_quant import read
from dit_accel.accel.quant.weight4 import Weight4, dequantise, residual
from dit_accel.tests.support.comfy_quant_dialects import kitchen, low_rank, make_layer, quantise

SIZES = [(64, 64, 8), (256, 384, 16), (640, 256, 32)]
SMOOTHING = ["weights", "activations", "outliers", "constant"]


def dense_of(rows, columns, spectrum):
    dense = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) / columns**0.5
    if spectrum == "flat":
        return dense
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    return (left * values * torch.arange(1, len(values) + 1) ** -0.6) @ right


def smooth_of(dense, kind):
    generator = torch.Generator().manual_seed(7)
    columns = dense.shape[1]
    weights = dense.abs().amax(0).sqrt()
    activations = torch.exp(torch.randn(columns, generator=generator) * 0.8)
    outliers = activations.clone()
    outliers[torch.randperm(columns, generator=generator)[:10]] *= 40
    kinds = {
        "weights": weights,
        "activations": activations.sqrt() / weights,
        "outliers": outliers.sqrt() / weights,
        "constant": torch.full((columns,), 0.25),
    }
    return kinds[kind].bfloat16()


def with_part(left, up, down, smooth) -> Weight4:
    codes, scale = quantise(left)
    return Weight4(codes, scale, smooth=smooth, proj_down=down.bfloat16(), proj_up=up.bfloat16())


def mixed(dense, smooth, rank) -> Weight4:
    """The plain weight's branch, subtracted from the smoothed weight."""
    up, down = low_rank(dense, rank)
    return with_part(dense * smooth.float() - up @ down.T, up, down, smooth)


def honest(dense, smooth, rank) -> Weight4:
    return make_layer(rank=rank, dense=dense, smooth=smooth)[0]


def plain_basis(dense, smooth, rank) -> Weight4:
    """The plain weight's branch, subtracted from the plain weight."""
    up, down = low_rank(dense, rank)
    return with_part((dense - up @ down.T) * smooth.float(), up, down, smooth)


def alternated(dense, smooth, rank) -> Weight4:
    factor = smooth.float()
    part = torch.zeros_like(dense)
    for _ in range(4):
        up, down = low_rank(dense * factor - part, rank)
        weight = with_part(dense * factor - up @ down.T, up, down / factor[:, None], smooth)
        part = residual(weight)
    return weight


def lora_of(dense):
    generator = torch.Generator().manual_seed(3)
    down = torch.randn(dense.shape[1], 16, generator=generator) / dense.shape[1] ** 0.5
    return torch.randn(dense.shape[0], 16, generator=generator) * dense.norm() / dense.shape[0] ** 0.5 / 4, down


def appended(dense, smooth, rank) -> Weight4:
    weight = honest(dense, smooth, rank)
    up, down = (tensor.bfloat16() for tensor in lora_of(dense))
    return replace(weight, proj_up=torch.cat([weight.proj_up, up], 1), proj_down=torch.cat([weight.proj_down, down], 1))


def merged(dense, smooth, rank) -> Weight4:
    """A LoRA in the branch, brought back to its rank."""
    weight = appended(dense, smooth, rank)
    factor = smooth.float()
    up, down = low_rank(weight.proj_up.float() @ weight.proj_down.float().T * factor, rank)
    return replace(weight, proj_up=up.bfloat16(), proj_down=(down / factor[:, None]).bfloat16())


def cut(dense, smooth, rank) -> Weight4:
    """The first half of the outputs of an honest layer, as of a fused q, k, v."""
    weight = honest(dense, smooth, rank)
    rows = slice(weight.shape[0] // 2)
    return replace(weight, codes=weight.codes[rows], scale=weight.scale[:, rows], proj_up=weight.proj_up[rows])


HONEST = [honest, plain_basis, alternated, appended, merged, cut]


@pytest.mark.parametrize("spectrum", ["flat", "decaying"])
@pytest.mark.parametrize("kind", SMOOTHING)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_misfit_tells_mixed_layers_from_honest_ones(size, kind, spectrum):
    dense = dense_of(*size[:2], spectrum)
    smooth = smooth_of(dense, kind)
    for make in HONEST:
        assert abs(misfit(make(dense, smooth, size[2]))) < 0.25, make.__name__
    assert 0.85 < misfit(mixed(dense, smooth, size[2])) < 1.15


def test_a_mixed_layer_is_not_its_weight():
    """What is at stake: the error that such a layer would make, beside that of an honest one."""
    dense = dense_of(256, 384, "decaying")
    smooth = smooth_of(dense, "activations")
    error = {make: (dequantise(make(dense, smooth, 16)) - dense).norm() / dense.norm() for make in (honest, mixed)}
    assert error[honest] < 0.15 < 0.6 < error[mixed]


def test_one_basis_is_never_mixed():
    dense = dense_of(256, 384, "flat")
    ones = torch.ones(384, dtype=torch.bfloat16)
    assert misfit(mixed(dense, ones, 16)) == 0
    assert misfit(replace(honest(dense, ones * 2, 16), smooth=None)) == 0
    assert misfit(honest(dense, ones * 2, 0)) == 0


@pytest.mark.parametrize("make", [mixed, *HONEST])
def test_reader_refuses_mixed_layers_only(make):
    dense = dense_of(256, 384, "decaying")
    weight = make(dense, smooth_of(dense, "activations"), 16)
    tensors = kitchen("a", weight, torch.zeros(weight.shape[0]))
    if make is mixed:
        with pytest.raises(ValueError, match=r"^m\.st: a\.weight_proj_down: expected .* found one in another basis"):
            read(tensors, {}, "m.st")
    else:
        read(tensors, {}, "m.st")
