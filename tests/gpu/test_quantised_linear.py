"""Layers with 4-bit weights on a GPU: the kernels beside their references, and every path that the card has."""

from dataclasses import replace

import pytest
import torch

from dit_accel.accel.quant.compute import PATHS, W4A16, card_of, card_problem
from dit_accel.accel.quant.linear import quantised_linear
from dit_accel.accel.quant.shared import siblings
from dit_accel.accel.quant.weight4 import dequantise
from dit_accel.kernels.quantise import FP8, INT8
from dit_accel.kernels.rowwise import quantise_rows, scale_sums
from dit_accel.kernels.unpack_w4 import E2M1, INT4, unpack_w4
from dit_accel.tests.bench.linear import drawn_layer
from dit_accel.tests.support.closeness import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

DTYPES = [torch.float16, torch.bfloat16]
# Relative errors against the layer in fp32: of rounding to bf16, and of 4 and 8 bits for activations.
LOSS = {"w4a16": 0.005, "w4a4": 0.12, "w8a8 int8": 0.02, "w8a8 fp8": 0.05}


def usable_paths():
    card = card_of("cuda")
    return [W4A16, *(path for path in PATHS if not card_problem(path, card))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(13824, 5120), (5120, 13824), (33, 1088)])
def test_unpacking(dtype, rows, columns):
    codes = torch.randint(-128, 128, (rows, columns // 2), dtype=torch.int8, device="cuda")
    smooth, channel = torch.rand(columns, device="cuda") + 0.5, torch.rand(rows, device="cuda") + 0.5
    wide = torch.rand(columns // 64, rows, device="cuda").to(dtype)
    fine = (torch.rand(columns // 16, rows, device="cuda") * 100).to(torch.float8_e4m3fn)
    for weight in (
        {"scale": wide, "grid": INT4, "zero": wide, "smooth": smooth},
        {"scale": fine, "grid": E2M1, "channel_scale": channel},
    ):
        out, expected = (unpack_w4(codes, **weight, dtype=dtype, backend=name) for name in ("triton", "reference"))
        # A division may round the last bit the other way.
        torch.testing.assert_close(out, expected, rtol=2**-7 if dtype == torch.bfloat16 else 2**-10, atol=0)
        assert (out != expected).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ends_of_an_8_bit_product(dtype):
    x = torch.randn(999, 5120, device="cuda").to(dtype)
    smooth = (torch.rand(5120, device="cuda") + 0.5).to(dtype)
    kinds = (INT8, FP8) if torch.cuda.get_device_capability() >= (8, 9) else (INT8,)
    for kind in kinds:
        (codes, steps), (expected, expected_steps) = (
            quantise_rows(x, smooth, kind, backend=name) for name in ("triton", "reference")
        )
        assert_close(steps, expected_steps, units=2)
        assert (codes.float() != expected.float()).float().mean() < 1e-3
    sums = torch.randint(-(2**24), 2**24, (999, 5121), dtype=torch.int32, device="cuda")
    column_steps = torch.rand(5121, device="cuda") * 1e-4
    out, expected = (
        scale_sums(sums, steps, column_steps, column_steps, dtype, backend=name) for name in ("triton", "reference")
    )
    assert_close(out, expected, units=1)


@pytest.mark.parametrize("tokens", [1, 7, 8200])
def test_every_path_of_this_card(tokens):
    layer = drawn_layer(1000, 1024, tokens, torch.device("cuda"), repeats=1)
    exact = layer.x.float() @ dequantise(layer.weight).T
    for path in usable_paths():
        out = quantised_linear(layer.x, layer.weight, None, path)
        assert ((out.float() - exact).norm() / exact.norm()).item() < LOSS[path], path


def test_q_k_v_share_their_input():
    """comfy-kitchen writes quantised activations into one buffer again and again."""
    layer = drawn_layer(1024, 1024, 300, torch.device("cuda"), repeats=1)
    other = torch.randn_like(layer.x)
    weights = {f"attn.{name}": replace(layer.weight, scale=layer.weight.scale * n) for n, name in enumerate("qkv", 1)}
    for path in usable_paths():
        found = siblings(weights, path)
        alone = [quantised_linear(layer.x, weight, None, path) for weight in weights.values()]
        together = []
        for name, weight in weights.items():
            together.append(quantised_linear(layer.x, weight, None, path, sibling=found.get(name)))
            if name == "attn.k":
                quantised_linear(other, weight, None, path)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True)), path


def test_nothing_waits_for_the_gpu():
    layer = drawn_layer(1024, 1024, 300, torch.device("cuda"), repeats=1)
    for path in usable_paths():
        quantised_linear(layer.x, layer.weight, None, path)
        torch.cuda.set_sync_debug_mode("error")
        try:
            quantised_linear(layer.x, layer.weight, None, path)
        finally:
            torch.cuda.set_sync_debug_mode("default")
