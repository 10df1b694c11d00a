"""Reads files in ComfyUI's comfy_quant convention, and what this pack writes in it (comfy_quant_writer.py).

Each 4-bit layer has JSON (comfy_quant_markers.py) and tensors beside its `weight`, int8 [N, K / 2] with the even column
in the low nibble. Three formats:

svdquant_w4a4 (comfy-kitchen's TensorCoreSVDQuantW4A4Layout, comfy-quants, convert_to_quant): signed codes in groups of
64, `weight_scale` [K / 64, N], `weight_smooth_factor` [K], `weight_proj_down` [K, R], `weight_proj_up` [N, R];
comfy-quants leaves the `weight_` off the last three. Layout `natural`, or `kitchen_tile_packed_w4a4` (weight
[N / 128, K / 64, 32, 128], scale [N / 128, K / 64, 128], proj_up [N / 128, R, 128]). The low-rank branch takes the raw
input, or the smoothed one where `lowrank_branch_input_basis` is post_smoothing. With `act_unsigned` the engine adds
GELU_SHIFT to its input and the bias in the file makes up for it.

awq_w4a16 (ComfyUI core 0.38, comfy-quants): W = (code - 8) * scale + zero with codes 0..15, in groups of `group_size`
(64); `weight_scale` and `weight_zeros` (comfy-quants: `weight_zero`), both [K / G, N].

dit_accel_w4 (this pack): whatever else a Weight4 can be, under a name of its own so that others refuse it. `grid` is
int4 or e2m1; `weight_scale` [K / G, N] (FP8 too); where they are there `weight_zeros` [K / G, N],
`weight_channel_scale` fp32 [N] or [1], and the last three of svdquant_w4a4. `unsigned_from` is Weight4's; the bias is
plain.

A field of the JSON that is not known is refused, since it could change what the numbers mean; so is a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..basis import misfit
from ..packing import unpack_tile_codes, unpack_tile_scales, unpack_tile_up
from ..weight4 import E2M1, INT4, Weight4
from .checks import FLOATS, FP8
from .comfy_quant_layer import Layer
from .comfy_quant_markers import HEADER, MARKER, marker, read_header, read_markers

SVDQUANT, AWQ, OURS = "svdquant_w4a4", "awq_w4a16", "dit_accel_w4"
NATURAL, TILES = "natural", "kitchen_tile_packed_w4a4"
RAW, SMOOTHED = "raw", "post_smoothing"
# They say how the file came about or how fast to compute, not what the numbers mean.
_REMARKS = ("orig_dtype", "learned_round", "full_precision_matrix_mult")
_ANY_SHAPE = ("format", "group_size", "orig_shape", "layout", *_REMARKS)
# What no layer in plain numbers has beside its weight and its bias.
_PARTS_OF_LAYERS = {
    "weight_scale",
    "weight_scale_2",
    "weight_s_rel",
    "weight_s_channel",
    "weight_codebook",
    "scale_weight",
    "weight_zeros",
    "weight_zero",
    "weight_channel_scale",
    "weight_smooth_factor",
    "smooth_factor",
    "weight_proj_down",
    "weight_proj_up",
    "proj_down",
    "proj_up",
}
_FIELDS = {
    SVDQUANT: (
        *_ANY_SHAPE,
        "rank",
        "act_unsigned",
        "lowrank_branch_input_basis",
        "proj_down_smooth_folded",
        "smooth_mode",
    ),
    AWQ: _ANY_SHAPE,
    OURS: (*_ANY_SHAPE, "rank", "grid", "unsigned_from", "lowrank_branch_input_basis"),
}


def detect(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether a file's tensors (or just their names) and header metadata follow the convention."""
    return HEADER in metadata or any(key.endswith(MARKER) for key in tensors)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> dict[str, Tensor | Weight4]:
    """The tensors of the file `name`, 4-bit layers as Weight4 with a plain bias (fp32 where the shift was in it).

    Layers of other formats (FP8, NVFP4, ...) stay as they are, for core to read; one that only the header tells of
    gets its marker. Raises ValueError naming file, layer and tensor or field, what was expected and what was found.
    """
    result: dict[str, Tensor | Weight4] = dict(tensors)
    configs = read_markers(tensors, name)
    for layer, config in read_header(metadata, tensors, name).items():
        if configs.get(layer, config) != config and config["format"] in _READERS:
            raise ValueError(f"{name}: {layer}: expected one description, found another in the header than in {MARKER}")
        if configs.get(layer) != config:
            configs[layer] = config
            result[layer + MARKER] = marker(config)
    _refuse_unmarked(tensors, configs, name)
    parts = _by_layer(tensors, configs)
    for layer, config in configs.items():
        reader = _READERS.get(config["format"])
        if reader is None:
            continue
        for part in parts[layer]:
            del result[f"{layer}.{part}"]
        del result[layer + MARKER]
        reading = Layer(name, layer, config, parts[layer])
        reading.allow_fields(_FIELDS[config["format"]])
        weight, bias = reader(reading)
        reading.end(weight)
        result[f"{layer}.weight"] = weight
        if bias is not None:
            result[f"{layer}.bias"] = bias
    return result


def _refuse_unmarked(tensors: Mapping[str, Tensor], layers: Mapping[str, object], name: str) -> None:
    """Raises ValueError for a quantised layer that nothing says the format of: its codes would be taken for numbers."""
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        codes = part == "weight" and tensor.dtype in (torch.int8, torch.uint8)
        if layer not in layers and (codes or part in _PARTS_OF_LAYERS):
            found = f"{tensor.dtype} numbers" if codes else "one"
            raise ValueError(
                f"{name}: {key}: expected {layer}{MARKER} to say the layer's format, found {found} without"
            )


def plain_bias(bias: Tensor, weight: Weight4) -> Tensor:
    """The bias of a layer whose engine shifts its input, without the shift: fp32 [N]."""
    return (bias.double() + weight.shift.double()).float()


def from_unsigned(codes: Tensor) -> Tensor:
    """Packed codes 0..15 as packed signed codes 8 below them, and the other way round: int8, any shape."""
    return (codes.view(torch.uint8) ^ 0x88).view(torch.int8)


def _by_layer(tensors: Mapping[str, Tensor], layers: Mapping[str, object]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {layer: {} for layer in layers}
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        if layer in parts and not key.endswith(MARKER):
            parts[layer][part] = tensor
    return parts


def _svdquant(layer: Layer) -> tuple[Weight4, Tensor | None]:
    layer.field("group_size", 64)
    unsigned = layer.field("act_unsigned", False, True)
    basis = layer.field("lowrank_branch_input_basis", RAW, SMOOTHED)
    layer.field("proj_down_smooth_folded", basis == RAW)
    tiled = layer.is_tiled()
    layer.field("layout", TILES if tiled else NATURAL)
    if tiled:
        packed = layer.take("weight", (torch.int8,), None, None, 32, 128)
        tiles = packed.shape[0]
        codes = layer.checked_codes(unpack_tile_codes(packed))
        scale = unpack_tile_scales(layer.take("weight_scale", FLOATS, tiles, packed.shape[1], 128))
    else:
        codes = layer.checked_codes(layer.take("weight", (torch.int8,), None, None))
        scale = layer.take("weight_scale", FLOATS, codes.shape[1] // 32, codes.shape[0])
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    smooth = layer.take_smooth(columns, "weight_smooth_factor", "smooth_factor")
    down = layer.take(("weight_proj_down", "proj_down"), FLOATS, columns, None)
    if tiled:
        up = unpack_tile_up(layer.take(("weight_proj_up", "proj_up"), FLOATS, tiles, down.shape[1], 128))
    else:
        up = layer.take(("weight_proj_up", "proj_up"), FLOATS, rows, down.shape[1])
    if basis == SMOOTHED:
        down = (down.float() / smooth.float()[:, None]).to(down.dtype)
    ranked = down.shape[1] > 0
    weight = Weight4(
        codes,
        scale,
        smooth=smooth,
        proj_down=down if ranked else None,
        proj_up=up if ranked else None,
        unsigned_from=0 if unsigned else None,
    )
    _refuse_mixed_basis(layer, weight)
    bias = layer.take_bias(rows)
    if not unsigned:
        return weight, bias
    if bias is None:
        raise layer.error("bias", "a bias that makes up for the shift of the input (act_unsigned)", "none")
    return weight, plain_bias(bias, weight)


def _refuse_mixed_basis(layer: Layer, weight: Weight4) -> None:
    expected = "a low-rank branch in the basis in which it was subtracted from the 4-bit weights"
    if weight.rank and layer.config.get("smooth_mode") == "weight_only":
        raise layer.error("comfy_quant: smooth_mode", expected, "'weight_only', whose converter mixes the two bases up")
    layer.field("smooth_mode", "ones", "external", "weight_only")
    share = misfit(weight)
    if share > 0.5:
        raise layer.error("weight_proj_down", expected, f"one in another basis (misfit {share:.2f} of 1)")


def _awq(layer: Layer) -> tuple[Weight4, Tensor | None]:
    layer.field("layout", NATURAL)
    codes = layer.checked_codes(layer.take("weight", (torch.int8,), None, None))
    groups = layer.groups(codes, default=64)
    scale = layer.take("weight_scale", FLOATS, groups, codes.shape[0])
    zero = layer.take(("weight_zeros", "weight_zero"), FLOATS, groups, codes.shape[0])
    return Weight4(from_unsigned(codes), scale, zero=zero), layer.take_bias(codes.shape[0])


def _ours(layer: Layer) -> tuple[Weight4, Tensor | None]:
    layer.field("layout", NATURAL)
    layer.field("lowrank_branch_input_basis", RAW)
    grid = layer.field("grid", INT4, E2M1)
    codes = layer.checked_codes(layer.take("weight", (torch.int8,), None, None))
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    groups = layer.groups(codes)
    unsigned_from = layer.config.get("unsigned_from")
    if unsigned_from is not None and (type(unsigned_from) is not int or unsigned_from not in range(columns)):
        raise layer.error("unsigned_from", f"null or an input channel below {columns}", unsigned_from)
    down = layer.take_if_there("weight_proj_down", FLOATS, columns, None)
    weight = Weight4(
        codes,
        layer.take("weight_scale", (*FLOATS, FP8), groups, rows),
        grid,
        zero=layer.take_if_there("weight_zeros", FLOATS, groups, rows),
        channel_scale=layer.take_channel_scale(rows),
        smooth=layer.take_smooth(columns, "weight_smooth_factor") if "weight_smooth_factor" in layer.parts else None,
        proj_down=down,
        proj_up=None if down is None else layer.take("weight_proj_up", FLOATS, rows, down.shape[1]),
        unsigned_from=unsigned_from,
    )
    return weight, layer.take_bias(rows)


_READERS: dict[str, Callable[[Layer], tuple[Weight4, Tensor | None]]] = {SVDQUANT: _svdquant, AWQ: _awq, OURS: _ours}
