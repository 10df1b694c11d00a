"""4-bit files of which a layer is not what it should be: refused by name when they are loaded, not while sampling."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dit_accel.tests.support.core_formats import quantised

LAYER = "blocks.0.self_attn.q"


@pytest.fixture
def parts(file):
    """The tensors and the metadata of the 4-bit file."""
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def saved(path, tensors, metadata):
    save_file(tensors, path, metadata=metadata)
    return path


def without_marker(tensors, metadata, layer):
    """As the file would be without what says the layer's format."""
    del tensors[f"{layer}.comfy_quant"]
    header = json.loads(metadata["_quantization_metadata"])
    del header["layers"][layer]
    return tensors, {"_quantization_metadata": json.dumps(header)}


def test_a_layer_without_its_marker_is_refused_by_name(load, parts, tmp_path):
    path = saved(tmp_path / "m.safetensors", *without_marker(*parts, LAYER))
    with pytest.raises(ValueError, match=rf"{LAYER}\..*: expected {LAYER}.comfy_quant to say the layer's format"):
        load(path)


@pytest.mark.parametrize("part", ["weight_scale", "weight_proj_down", "smooth_factor", "weight_scale_2"])
def test_what_is_left_of_a_quantised_layer_is_refused_by_name(load, parts, tmp_path, part):
    tensors, metadata = parts
    tensors[f"head.head.{part}"] = torch.ones(4)
    with pytest.raises(ValueError, match=rf"head\.head\.{part}: expected head\.head\.comfy_quant"):
        load(saved(tmp_path / "m.safetensors", tensors, metadata))


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "nvfp4"])
def test_a_weight_of_the_wrong_shape_in_cores_format_is_refused_by_name(load, parts, tmp_path, kind):
    tensors, metadata = without_marker(*parts, LAYER)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{LAYER}.weight")}
    tensors |= quantised({f"{LAYER}.weight": torch.ones(192, 320)}, [LAYER], kind)
    with pytest.raises(ValueError, match=rf"{LAYER}.weight: expected shape"):
        load(saved(tmp_path / "m.safetensors", tensors, metadata))


def test_a_plain_weight_of_the_wrong_shape_is_refused_by_name(load, parts, tmp_path):
    tensors, metadata = parts
    tensors["head.head.weight"] = torch.ones(7, 9)
    with pytest.raises(ValueError, match=r"head\.head\.weight: expected shape"):
        load(saved(tmp_path / "m.safetensors", tensors, metadata))
