"""The comfy_quant convention: three dialects are read as one, and what is written is read again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_accel.accel.quant.basis import misfit
from dit_accel.accel.quant.formats.comfy_quant import detect, read
from dit_accel.accel.quant.formats.comfy_quant_writer import format_of, tensors_of
from dit_accel.accel.quant.formats.nunchaku_layers import PARTS, read_svdquant
from dit_accel.accel.quant.formats.reading import read_quantised
from dit_accel.accel.quant.weight4 import E2M1, GELU_SHIFT, Weight4, dequantise, unpack_nibbles
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.comfy_quant_dialects import (
    awq,
    disk_bias,
    kitchen,
    make_awq,
    make_layer,
    marker,
    same,
    tiles,
)

FILE = "m.safetensors"


def one(weight, bias, layer="blocks.0.ffn.2"):
    return {f"{layer}.weight": weight} | ({} if bias is None else {f"{layer}.bias": bias})


def to_header(tensors, prefix=""):
    """The same file with its JSON in the header only, under names without `prefix`."""
    keys = [key for key in tensors if key.endswith(".comfy_quant")]
    layers = {
        key.removesuffix(".comfy_quant").removeprefix(prefix): json.loads(tensors[key].numpy().tobytes())
        for key in keys
    }
    header = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return {key: tensor for key, tensor in tensors.items() if key not in keys}, header


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("write", [kitchen, tiles])
def test_dialects_of_svdquant_are_one_layer(write, unsigned, dtype):
    layer = make_layer(dtype=dtype, unsigned=unsigned)
    tensors = {"norm.weight": torch.ones(4)} | write("blocks.0.ffn.2", *layer)
    expected = {"norm.weight": tensors["norm.weight"]} | one(*layer)
    assert detect(tensors, {})
    assert same(read(tensors, {}, FILE), expected)
    bare, header = to_header(tensors)
    assert detect(bare, header)
    assert same(read(bare, header, FILE), expected)
    assert same(read(tensors, header, FILE), expected)


def test_names_in_a_header_lack_the_prefix_of_the_tensors():
    prefix = "model.diffusion_model."
    layer = make_layer()
    bare, header = to_header(kitchen(f"{prefix}a", *layer), prefix)
    assert same(read(bare, header, FILE), one(*layer, layer=f"{prefix}a"))


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("zero", ["weight_zeros", "weight_zero"])
def test_dialects_of_awq_are_one_layer(zero, group):
    layer = make_awq(group=group)
    tensors = awq("blocks.0.ffn.2", *layer, zero=zero)
    assert same(read(tensors, {}, FILE), one(*layer))


def test_other_files_are_none_of_ours():
    assert not detect({"a.weight": torch.ones(1), "a.qweight": torch.ones(1)}, {"format": "pt"})


# What comfy-kitchen computes from the very tensors of the file, with inputs that 4-bit activations hold exactly.


def exact_input(weight: Weight4, unsigned: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    low, high = (0, 15) if unsigned else (-7, 7)
    codes = torch.randint(low, high + 1, (5, weight.shape[1]), generator=generator).float()
    codes[:, ::64] = high
    return codes * weight.smooth.float()


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("write", [kitchen, tiles])
def test_what_is_read_computes_what_comfy_kitchen_computes(write, unsigned):
    from comfy_kitchen.backends.eager import svdquant

    layer = make_layer(columns=192, dtype=torch.float32, unsigned=unsigned)
    tensors = write("a", *layer)
    names = {key.removeprefix("a.").removeprefix("weight_"): tensor for key, tensor in tensors.items()}
    main = exact_input(layer[0], unsigned)
    raw = main - GELU_SHIFT if unsigned else main
    act, scales, low = svdquant.quantize_svdquant_w4a4(
        main, names["smooth_factor"], names["proj_down"], act_unsigned=unsigned, lora_x=raw
    )
    expected = svdquant.scaled_mm_svdquant_w4a4(
        act, tensors["a.weight"], scales, names["scale"], low, names["proj_up"], names["bias"], act_unsigned=unsigned
    )[: len(main)]
    found = read(tensors, {}, FILE)
    result = raw @ dequantise(found["a.weight"]).T + found["a.bias"]
    assert_close(result, expected, units=64)


def test_awq_means_what_comfy_kitchen_computes():
    from comfy_kitchen.backends.eager.awq import gemv_awq_w4a16

    tensors = awq("a", *make_awq(dtype=torch.float32))
    found = read(tensors, {}, FILE)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    expected = gemv_awq_w4a16(x, *(tensors[f"a.{part}"] for part in ("weight", "weight_scale", "weight_zeros", "bias")))
    assert_close(x @ dequantise(found["a.weight"]).T + found["a.bias"], expected)


def test_a_branch_of_the_smoothed_input_is_folded():
    weight, bias = make_layer(dtype=torch.float32)
    smoothed = replace(weight, proj_down=weight.proj_down * weight.smooth[:, None])
    about = {"lowrank_branch_input_basis": "post_smoothing", "proj_down_smooth_folded": False}
    found = read(tiles("a", smoothed, bias, **about), {}, FILE)
    assert_close(dequantise(found["a.weight"]), dequantise(weight))


def test_layers_of_core_stay_as_they_are():
    eight = {
        "b.weight": torch.ones(8, 8, dtype=torch.float8_e4m3fn),
        "b.weight_scale": torch.ones(()),
        "b.comfy_quant": marker(format="float8_e4m3fn", anything=1),
    }
    found = read(kitchen("a", *make_layer()) | eight, {}, FILE)
    assert all(found[key] is tensor for key, tensor in eight.items())
    bare, header = to_header(kitchen("a", *make_layer()) | eight)
    found = read(bare, header, FILE)
    assert json.loads(found["b.comfy_quant"].numpy().tobytes()) == {"format": "float8_e4m3fn", "anything": 1}
    written, metadata = tensors_of(found)
    assert written["b.weight"] is eight["b.weight"]
    assert json.loads(metadata["_quantization_metadata"])["layers"].keys() == {"a", "b"}


def nvfp4():
    weight, bias = make_layer()
    return replace(
        weight,
        grid=E2M1,
        scale=torch.rand(8, 256).to(torch.float8_e4m3fn),
        channel_scale=torch.rand(256),
    ), bias


WRITTEN = {
    "svdquant_w4a4": {
        "signed": make_layer(),
        "fp16": make_layer(dtype=torch.float16),
        "unsigned": make_layer(unsigned=True),
        "unsigned, plain bias not of a file": (make_layer(unsigned=True)[0], torch.randn(256)),
        "no bias": (make_layer()[0], None),
        "rank 0": make_layer(rank=0),
    },
    "awq_w4a16": {"group 64": make_awq(), "group 128": make_awq(group=128)},
    "dit_accel_w4": {
        "nvfp4": nvfp4(),
        "e2m1 in groups of 64": (replace(make_layer()[0], grid=E2M1), None),
        "int4 with a channel scale": (replace(make_layer()[0], channel_scale=torch.rand(256)), None),
        "one channel scale": (replace(nvfp4()[0], channel_scale=torch.rand(1)), None),
        "unsigned from the middle": (replace(make_layer()[0], unsigned_from=64), torch.randn(256)),
        "unsigned without a bias": (make_layer(unsigned=True)[0], None),
        "zeros and smoothing": (replace(make_layer()[0], zero=torch.rand(2, 256)), None),
        "no smoothing": (replace(make_layer()[0], smooth=None), torch.randn(256)),
    },
}


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, cases in WRITTEN.items() for case in cases])
def test_what_is_written_is_read(kind, case, tmp_path):
    model = one(*WRITTEN[kind][case]) | {"head.weight": torch.randn(3, 5), "scalar": torch.tensor(2.0)}
    assert format_of(*WRITTEN[kind][case]) == kind
    written, metadata = tensors_of(model)
    config = json.loads(written["blocks.0.ffn.2.comfy_quant"].numpy().tobytes())
    assert config["format"] == kind
    assert json.loads(metadata["_quantization_metadata"]) == {
        "format_version": "1.0",
        "layers": {"blocks.0.ffn.2": config},
    }
    save_file(written, tmp_path / FILE, metadata=metadata)
    found, about = read_quantised(tmp_path / FILE)
    assert same(found, model)
    again, metadata_again = tensors_of(found)
    assert same(again, written)
    assert metadata_again == metadata == about


GOLDEN = {
    "nunchaku_int4_signed": "svdquant_w4a4",
    "nunchaku_int4_gelu_shifted": "svdquant_w4a4",
    "nunchaku_nvfp4_tensor_scale": "dit_accel_w4",
    "nunchaku_nvfp4_channel_scale": "dit_accel_w4",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_layers_of_the_official_exporter_survive(name):
    tensors = load_file(Path(__file__).parents[1] / "golden" / f"{name}.safetensors")
    parts = {PARTS.get(key, key): tensor for key, tensor in tensors.items() if "." not in key}
    layer = read_svdquant("a", parts, (None, None), unsigned="gelu" in name)
    model = one(layer.weight, layer.bias, "a")
    assert format_of(layer.weight, layer.bias) == GOLDEN[name]
    assert abs(misfit(layer.weight)) < 0.01
    written, _ = tensors_of(model)
    assert written["a.bias"].dtype == torch.bfloat16
    found = read(written, {}, FILE)
    assert same(found, model)
    assert_close(dequantise(found["a.weight"]), tensors["expected.weight"])
    assert_close(found["a.bias"].float(), tensors["expected.bias"])


def test_svdquant_is_written_as_others_expect_it():
    from comfy_kitchen.tensor.svdquant_w4a4 import TensorCoreSVDQuantW4A4Layout as Layout

    weight, bias = make_layer(unsigned=True)
    written, _ = tensors_of(one(weight, bias, "a"))
    assert json.loads(written.pop("a.comfy_quant").numpy().tobytes()) == {
        "format": "svdquant_w4a4",
        "group_size": 64,
        "rank": 16,
        "act_unsigned": True,
        "layout": "natural",
        "lowrank_branch_input_basis": "raw",
        "orig_shape": [256, 128],
    }
    params = Layout.Params(
        scale=weight.scale,
        orig_dtype=torch.bfloat16,
        orig_shape=weight.shape,
        proj_down=weight.proj_down,
        proj_up=weight.proj_up,
        smooth_factor=weight.smooth,
    )
    expected = {f"a.weight{key}": value for key, value in Layout.state_dict_tensors(weight.codes, params).items()}
    assert same(written, expected | {"a.bias": disk_bias(weight, bias)})
    assert written["a.bias"].dtype == torch.bfloat16


def test_awq_is_written_as_core_expects_it():
    weight, bias = make_awq()
    written, _ = tensors_of(one(weight, bias, "a"))
    expected = awq("a", weight, bias)
    expected["a.comfy_quant"] = marker(format="awq_w4a16", group_size=64, orig_shape=[256, 128])
    assert same(written, expected)


def test_shared_tensors_are_written_twice(tmp_path):
    weight, bias = make_layer()
    half = [
        replace(weight, codes=weight.codes[rows], scale=weight.scale[:, rows], proj_up=weight.proj_up[rows])
        for rows in (slice(128), slice(128, 256))
    ]
    model = {"q.weight": half[0], "k.weight": half[1], "q.bias": bias[:128], "k.bias": bias[128:]}
    written, metadata = tensors_of(model)
    save_file(written, tmp_path / FILE, metadata=metadata)
    found, _ = read_quantised(tmp_path / FILE)
    assert same(found, model)
    # In a file k comes before q.
    assert list(found) != list(model)
    assert tensors_of(found)[1] == metadata


def test_codes_of_every_value_survive():
    weight = replace(make_layer()[0], codes=torch.arange(-128, 128, dtype=torch.int8).repeat(64).view(256, 64))
    assert unpack_nibbles(weight.codes).unique().numel() == 16
    assert same(read(tensors_of(one(weight, None))[0], {}, FILE), one(weight, None))
