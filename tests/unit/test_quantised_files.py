"""nunchaku files that are broken or something else: refused, with file, layer and tensor in the message."""

import json
import pickle
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.quant.formats.reading import FOLDER_PARTS, READERS, read_quantised
from dit_accel.accel.quant.weight4 import E2M1, INT4, Weight4
from dit_accel.tests.support.svdquant import pack_svdquant, quantise

LAYER = "layers.0.attention.to_qkv"
NAN = float("nan")


@cache
def _model(grid: str, width: int) -> dict[str, torch.Tensor]:
    """A Z-Image of one block in every list."""
    shapes = {
        "attention.to_qkv": (3 * width, width),
        "attention.to_out.0": (width, width),
        "feed_forward.net.0.proj": (512, width),
        "feed_forward.net.2": (width, 256),
    }
    tensors = {"cap_embedder.1.weight": torch.ones(width, 64)}
    for blocks in ("layers", "noise_refiner", "context_refiner"):
        tensors |= {f"{blocks}.0.attention.norm_{which}.weight": torch.ones(64) for which in "qk"}
        for name, shape in shapes.items():
            smooth = torch.full((shape[1],), 2.0).bfloat16()
            weight = quantise(torch.randn(shape, generator=torch.Generator().manual_seed(0)), smooth, grid=grid)
            parts, _ = pack_svdquant(weight, torch.ones(shape[0]))
            tensors |= {f"{blocks}.0.{name}.{part}": tensor.clone() for part, tensor in parts.items()}
    return tensors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.safetensors"


def model(grid: str = INT4, width: int = 128) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in _model(grid, width).items()}


def assert_refused(path, *texts: str) -> None:
    with pytest.raises(ValueError) as found:
        read_quantised(path)
    message = str(found.value)
    assert message.startswith(f"{path}: "), message
    for text in texts:
        assert text in message, message


@pytest.mark.parametrize("grid", [INT4, E2M1])
def test_the_whole_file_is_read(path, grid):
    save_file(model(grid), path)
    found, metadata = read_quantised(path)
    assert metadata == {}
    assert sum(isinstance(tensor, Weight4) for tensor in found.values()) == 3 * 5


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "a broken one"),
        (b"no tensors here", "a broken one"),
        (pickle.dumps({"weight": [0.0] * 100}), "a pickle"),
    ],
)
def test_no_safetensors_file(path, content, what):
    path.write_bytes(content)
    assert_refused(path, f"expected a safetensors file, found {what}")


def test_a_renamed_pickle(path):
    torch.save(model(), path)
    assert_refused(path, "expected a safetensors file, found a pickle")


def test_a_truncated_file(path):
    save_file(model(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert_refused(path, "expected a safetensors file, found a broken one")


def test_a_plain_model(path):
    save_file({"layers.0.attention.to_q.weight": torch.zeros(128, 128, dtype=torch.bfloat16)}, path)
    formats = " or ".join(reader.name for reader in READERS)
    assert_refused(path, f"expected a 4-bit model ({formats}), found 1 tensors and no 4-bit layer")


def test_a_folder_that_lacks_a_file(tmp_path):
    save_file(model(), tmp_path / FOLDER_PARTS[0])
    assert_refused(tmp_path, f"found no {FOLDER_PARTS[1]}")


def without(*endings):
    """The tensors of a layer left out, or all whose name begins so."""
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(endings)]


def changed(part, change):
    """A tensor of the layer replaced by what `change` makes of it."""
    return lambda tensors: tensors.update({f"{LAYER}.{part}": change(tensors[f"{LAYER}.{part}"])})


def spoilt(part, value):
    """One number of a tensor of the layer changed."""

    def change(tensors):
        tensor = tensors[f"{LAYER}.{part}"].float()
        tensor.view(-1)[100 % tensor.numel()] = value
        tensors[f"{LAYER}.{part}"] = tensor.to(tensors[f"{LAYER}.{part}"].dtype)

    return change


def added(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


CHANGES = {
    "no scales": (without(f"{LAYER}.wscales"), f"expected a tensor {LAYER}.wscales"),
    "half a low rank": (without(f"{LAYER}.proj_up"), f"expected a tensor {LAYER}.proj_up"),
    "no layer": (without("layers.0.attention.to_out"), "expected layers.0.attention.to_out.0 for ComfyUI's"),
    "no norm": (without("layers.0.attention.norm_q"), "expected layers.0.attention.norm_q"),
    "no block": (without("noise_refiner"), "expected blocks noise_refiner.0 and on"),
    "a gap": (
        added("layers.2.attention.norm_q.weight", torch.ones(64)),
        "expected blocks layers.0 to layers.2, found no layers.1",
    ),
    "no width": (without("cap_embedder"), "expected a model of FLUX.1, Qwen-Image, Z-Image, found no name"),
    "codes of 16 bits": (changed("qweight", torch.Tensor.short), f"{LAYER}.qweight: expected int8 [any, any]"),
    "scales of 32 bits": (
        changed("wscales", torch.Tensor.float),
        f"{LAYER}.wscales: expected bfloat16 or float16 or float8_e4m3fn [2, 384], found float32 [2, 384]",
    ),
    "scales on their side": (changed("wscales", torch.t), f"{LAYER}.wscales: expected"),
    "a smoothing too short": (changed("smooth_factor", lambda t: t[:64]), f"{LAYER}.smooth_factor: expected"),
    "a bias too long": (changed("bias", lambda t: t.repeat(2)), f"{LAYER}.bias: expected"),
    "codes as numbers": (changed("bias", torch.Tensor.int), f"{LAYER}.bias: expected"),
    "an odd rank": (
        lambda tensors: [changed(part, lambda t: t[:, :8])(tensors) for part in ("proj_down", "proj_up")],
        f"{LAYER}.proj_down: expected a rank that is a multiple of 16, found 8",
    ),
    "two ranks": (changed("proj_up", lambda t: t.repeat(1, 2)), f"{LAYER}.proj_up: expected"),
    "too few inputs": (changed("qweight", lambda t: t[:, :48]), f"{LAYER}.qweight: expected a layer 384x128"),
    "too many outputs": (changed("qweight", lambda t: t.repeat(2, 1)), f"{LAYER}.qweight: expected a layer 384x128"),
    "a smoothing with zero": (spoilt("smooth_factor", 0), f"{LAYER}.smooth_factor: expected divisors, found zero"),
    "an unknown tensor": (added(f"{LAYER}.wpoints", torch.ones(1)), f"{LAYER}.wpoints: expected no such tensor"),
    "an unknown layer": (
        lambda tensors: tensors.update(
            {
                name.replace("to_out.0", "to_gate"): tensor.clone()
                for name, tensor in tensors.items()
                if name.startswith("layers.0.attention.to_out")
            }
        ),
        "layers.0.attention.to_gate: expected no 4-bit layer of this name",
    ),
    **{
        f"{value} in {part}": (spoilt(part, value), f"{LAYER}.{part}: expected finite numbers, found NaN or infinity")
        for part in ("wscales", "smooth_factor", "proj_down", "proj_up", "bias")
        for value in (NAN, float("inf"))
    },
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_broken_layer(path, case):
    change, text = CHANGES[case]
    tensors = model()
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    assert_refused(path, text)


@pytest.mark.parametrize("part", ["wscales", "wtscale"])
def test_nan_in_nvfp4_scales(path, part):
    tensors = model(E2M1)
    spoilt(part, NAN)(tensors)
    save_file(tensors, path)
    assert_refused(path, f"{LAYER}.{part}: expected finite numbers")


def test_inputs_that_are_no_whole_groups(path):
    """A model 96 wide: its file would have 128 inputs, and the last group of 64 would be cut."""
    tensors = {**model(), "cap_embedder.1.weight": torch.ones(96, 64)}
    save_file(tensors, path)
    assert_refused(path, f"{LAYER}: expected a multiple of 64 inputs, found 96")


@pytest.mark.parametrize(
    "metadata, texts",
    [
        ({"model_class": "NunchakuFluxTransformer2dModel"}, ["x_embedder.weight", "FLUX.1"]),
        ({"config": "{"}, ["metadata config: expected JSON"]),
        ({"config": "[" * 100_000}, ["metadata config: expected JSON"]),
    ],
)
def test_metadata_of_something_else(path, metadata, texts):
    save_file(model(), path, metadata=metadata)
    assert_refused(path, *texts)


def test_a_model_without_a_reader(path):
    tensors = {f"sana.{name}": tensor for name, tensor in model().items()}
    save_file(tensors, path, metadata={"model_class": "NunchakuSanaTransformer2DModel", "config": json.dumps({})})
    assert_refused(path, "expected a model of FLUX.1, Qwen-Image, Z-Image, found NunchakuSanaTransformer2DModel")
    # Names that are no texts.
    names = {"config": json.dumps({"_class_name": ["Sana"]}), "comfy_config": json.dumps({"model_class": 7})}
    save_file(tensors, path, metadata={"model_class": "Sana", **names})
    assert_refused(path, "expected a model of FLUX.1, Qwen-Image, Z-Image, found 7, Sana, ['Sana']")
