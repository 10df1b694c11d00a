"""Broken and hostile comfy_quant files: every one is refused with a line that names file, layer and what is wrong."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.quant.formats.comfy_quant import read
from dit_accel.accel.quant.formats.reading import read_quantised
from dit_accel.tests.support.comfy_quant_dialects import awq, kitchen, make_awq, make_layer, marker, same, tiles

FILE = "m.safetensors"
LAYER = make_layer()
UNSIGNED = make_layer(unsigned=True)


def raw(text: bytes) -> torch.Tensor:
    return torch.tensor(list(text), dtype=torch.uint8)


def svdquant(**fields) -> torch.Tensor:
    return marker(format="svdquant_w4a4", **fields)


def spoilt(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = value
    return tensor


NATURAL, TILED, AWQ = kitchen("a", *LAYER), tiles("a", *LAYER), awq("a", *make_awq())
OURS = NATURAL | {"a.comfy_quant": marker(format="dit_accel_w4", grid="int4", group_size=64)}
GONE = None
WIDE = {"a.weight": torch.zeros(256, 48, dtype=torch.int8), "a.comfy_quant": svdquant()}

# What: the file, the tensors changed in it, and what the error says.
CASES = {
    "no codes": (NATURAL, {"a.weight": GONE}, "a.weight: expected this tensor, found none"),
    "no scale": (NATURAL, {"a.weight_scale": GONE}, "a.weight_scale: expected this tensor, found none"),
    "no branch": (NATURAL, {"a.weight_proj_up": GONE}, "a.weight_proj_up: expected this tensor, found none"),
    "no smoothing": (TILED, {"a.smooth_factor": GONE}, "a.weight_smooth_factor: expected this tensor, found none"),
    "no zeros": (AWQ, {"a.weight_zeros": GONE}, "a.weight_zeros: expected this tensor, found none"),
    "two names": (NATURAL, {"a.proj_up": LAYER[0].proj_up}, "a.weight_proj_up: expected it under one name"),
    "unknown tensor": (NATURAL, {"a.wcscales": torch.ones(256)}, "a.wcscales: expected no such tensor, found one"),
    "float codes": (NATURAL, {"a.weight": torch.zeros(256, 64)}, "a.weight: expected int8 [any, any], found float32"),
    "integer scale": (
        NATURAL,
        {"a.weight_scale": torch.ones(2, 256, dtype=torch.int32)},
        "a.weight_scale: expected bfloat16 or float16 or float32 [2, 256], found int32 [2, 256]",
    ),
    "scale turned": (
        NATURAL,
        {"a.weight_scale": LAYER[0].scale.T.contiguous()},
        "a.weight_scale: expected bfloat16 or float16 or float32 [2, 256], found bfloat16 [256, 2]",
    ),
    "branch turned": (NATURAL, {"a.weight_proj_down": LAYER[0].proj_down.T.contiguous()}, "[128, any], found"),
    "ranks differ": (NATURAL, {"a.weight_proj_up": LAYER[0].proj_up[:, :8]}, "[256, 16], found bfloat16 [256, 8]"),
    "short bias": (NATURAL, {"a.bias": torch.zeros(255)}, "a.bias: expected"),
    "NaN scale": (NATURAL, {"a.weight_scale": spoilt(LAYER[0].scale, float("nan"))}, "a.weight_scale: expected finite"),
    "infinite scale": (TILED, {"a.weight_scale": spoilt(TILED["a.weight_scale"], float("inf"))}, "expected finite"),
    "NaN FP8 scale": (
        OURS,
        {"a.weight_scale": spoilt(torch.ones(2, 256), float("nan")).to(torch.float8_e4m3fn)},
        "a.weight_scale: expected finite",
    ),
    "smoothing of 0": (
        NATURAL,
        {"a.weight_smooth_factor": spoilt(LAYER[0].smooth, 0)},
        "a.weight_smooth_factor: expected divisors, found zero",
    ),
    "K of 96": (WIDE, {}, "a.weight: expected codes of a multiple of 64 input channels, found 256 x 96"),
    "empty": (WIDE, {"a.weight": torch.zeros(0, 64, dtype=torch.int8)}, "a.weight: expected codes of a multiple"),
    "empty tiles": (TILED, {"a.weight": torch.zeros(0, 2, 32, 128, dtype=torch.int8)}, "a.weight: expected codes"),
    "tiles of 64": (
        TILED,
        {"a.weight": torch.zeros(4, 2, 16, 128, dtype=torch.int8)},
        "a.weight: expected int8 [any, any, 32, 128], found int8 [4, 2, 16, 128]",
    ),
    "natural scales beside tiles": (
        TILED,
        {"a.weight_scale": LAYER[0].scale},
        "a.weight_scale: expected bfloat16 or float16 or float32 [2, 2, 128]",
    ),
    "unsigned, no bias": (kitchen("a", *UNSIGNED), {"a.bias": GONE}, "a.bias: expected a bias that makes up for the"),
    "broken JSON": (NATURAL, {"a.comfy_quant": raw(b'{"format": "svd')}, "a.comfy_quant: expected JSON, found"),
    "no UTF-8": (NATURAL, {"a.comfy_quant": raw(b"\xff\xfe\x00")}, "a.comfy_quant: expected JSON, found"),
    "deep JSON": (NATURAL, {"a.comfy_quant": raw(b"[" * 100_000)}, "a.comfy_quant: expected JSON, found"),
    "a list": (NATURAL, {"a.comfy_quant": raw(b"[]")}, "a.comfy_quant: expected an object that names a `format`"),
    "no format": (NATURAL, {"a.comfy_quant": marker(rank=16)}, "a.comfy_quant: expected an object that names"),
    "float marker": (NATURAL, {"a.comfy_quant": torch.ones(3)}, "a.comfy_quant: expected uint8 [any], found float32"),
    "unknown field": (NATURAL, {"a.comfy_quant": svdquant(rotate=256)}, "found 'rotate': 256"),
    "unknown AWQ field": (AWQ, {"a.comfy_quant": marker(format="awq_w4a16", act_unsigned=True)}, "'act_unsigned'"),
    "unknown layout": (NATURAL, {"a.comfy_quant": svdquant(layout="swizzled")}, "layout: expected 'natural', found"),
    "other layout": (TILED, {"a.comfy_quant": svdquant(layout="natural")}, "expected 'kitchen_tile_packed_w4a4'"),
    "unknown basis": (
        NATURAL,
        {"a.comfy_quant": svdquant(lowrank_branch_input_basis="rotated")},
        "lowrank_branch_input_basis: expected 'raw' or 'post_smoothing', found 'rotated'",
    ),
    "contradicted basis": (NATURAL, {"a.comfy_quant": svdquant(proj_down_smooth_folded=False)}, "expected True, found"),
    "group of 32": (NATURAL, {"a.comfy_quant": svdquant(group_size=32)}, "group_size: expected 64, found 32"),
    "group of nothing": (AWQ, {"a.comfy_quant": marker(format="awq_w4a16", group_size=0)}, "a divisor of 128"),
    "group as text": (AWQ, {"a.comfy_quant": marker(format="awq_w4a16", group_size="64")}, "a divisor of 128"),
    "group not of the scale": (AWQ, {"a.comfy_quant": marker(format="awq_w4a16", group_size=32)}, "[4, 256], found"),
    "text for a switch": (NATURAL, {"a.comfy_quant": svdquant(act_unsigned="yes")}, "act_unsigned: expected False or"),
    "other rank": (NATURAL, {"a.comfy_quant": svdquant(rank=32)}, "rank: expected 16, found 32"),
    "other shape": (NATURAL, {"a.comfy_quant": svdquant(orig_shape=[256, 256])}, "expected [256, 128], found [256, "),
    "smoothed by weights": (
        NATURAL,
        {"a.comfy_quant": svdquant(smooth_mode="weight_only")},
        "found 'weight_only', whose",
    ),
    "unknown smoothing": (NATURAL, {"a.comfy_quant": svdquant(smooth_mode="magic")}, "smooth_mode: expected 'ones' or"),
    "unknown grid": (
        OURS,
        {"a.comfy_quant": marker(format="dit_accel_w4", grid="nf4", group_size=64)},
        "grid: expected",
    ),
    "half a branch": (OURS, {"a.weight_proj_up": GONE}, "a.weight_proj_up: expected this tensor, found none"),
    "unsigned from beyond": (
        OURS,
        {"a.comfy_quant": marker(format="dit_accel_w4", grid="int4", group_size=64, unsigned_from=128)},
        "a.unsigned_from: expected null or an input channel below 128, found 128",
    ),
    "unsigned from a fraction": (
        OURS,
        {"a.comfy_quant": marker(format="dit_accel_w4", grid="int4", group_size=64, unsigned_from=64.0)},
        "a.unsigned_from: expected null or an input channel below 128, found 64.0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_file_layer_and_reason(case):
    tensors, changes, message = CASES[case]
    changed = {key: value for key, value in (tensors | changes).items() if value is not GONE}
    with pytest.raises(ValueError) as caught:
        read(changed, {}, FILE)
    text = str(caught.value)
    assert text.startswith(f"{FILE}: a.")
    assert message in text
    assert len(text) < 500 and "\n" not in text


@pytest.mark.parametrize("tensors", [NATURAL, TILED, AWQ, OURS])
def test_what_the_cases_spoil_was_good(tensors):
    read(tensors, {}, FILE)


HEADERS = {
    "broken JSON": ("{", "expected JSON, found '{'"),
    "a list": ("[]", "expected an object with `layers`, found []"),
    "no layers": ('{"format_version": "1.0"}', "expected an object with `layers`"),
    "layers in a list": ('{"layers": ["a"]}', "expected an object with `layers`"),
    "a later version": ('{"format_version": "2.0", "layers": {}}', "expected format_version 1.0, found '2.0'"),
    "no format": ('{"layers": {"a": {}}}', "a: expected an object that names a `format`"),
    "no such layer": ('{"layers": {"b": {"format": "svdquant_w4a4"}}}', "b.weight: expected this tensor, found none"),
    "another format": ('{"layers": {"a": {"format": "awq_w4a16"}}}', "a: expected one description, found another"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_bad_header_is_refused(case):
    header, message = HEADERS[case]
    with pytest.raises(ValueError) as caught:
        read(NATURAL, {"_quantization_metadata": header}, FILE)
    assert str(caught.value).startswith(f"{FILE}: ")
    assert message in str(caught.value)


def test_remarks_change_nothing():
    about = json.loads(NATURAL["a.comfy_quant"].numpy().tobytes())
    about |= {"full_precision_matrix_mult": True, "learned_round": False, "orig_dtype": "torch.float16"}
    assert same(read(NATURAL | {"a.comfy_quant": marker(**about)}, {}, FILE), read(NATURAL, {}, FILE))


def test_the_line_names_the_file_on_disk(tmp_path):
    path = tmp_path / FILE
    save_file({key: tensor.contiguous() for key, tensor in NATURAL.items() if key != "a.weight_scale"}, path)
    with pytest.raises(ValueError, match=f"^{path}: a.weight_scale: expected this tensor, found none$"):
        read_quantised(path)
