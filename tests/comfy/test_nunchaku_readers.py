"""nunchaku checkpoints of tiny models: what is read, dequantised, is the plain model, key by key."""

import importlib
import json

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.accel.quant.formats.reading import FOLDER_PARTS, read_quantised
from dit_accel.accel.quant.weight4 import E2M1, INT4, Weight4, dequantise
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.svdquant import quantise

GRIDS = [INT4, E2M1]


@pytest.fixture(scope="session")
def nunchaku(comfy):
    """The module, loaded after ComfyUI."""
    return importlib.import_module("dit_accel.tests.support.nunchaku_checkpoints")


def save(checkpoint, path, **metadata):
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, path, metadata={**checkpoint.metadata, **metadata})
    return path


def assert_is(found: dict, plain: dict) -> None:
    """The tensors are the plain model: 16-bit ones exactly, 4-bit ones to the rounding of fp32."""
    assert found.keys() == plain.keys()
    for name, tensor in found.items():
        if isinstance(tensor, Weight4):
            assert_close(dequantise(tensor), plain[name], what=name)
        elif tensor.dtype == torch.float32:
            assert_close(tensor, plain[name], what=name)
        else:
            assert torch.equal(tensor.float(), plain[name]), name


CASES = [
    ("flux", "cpp", 8 + 2 + 2 * 3),
    ("flux", "python", 8 + 2 + 2 * 3),
    ("flux padded", "cpp", 8 + 2 + 2 * 3),
    ("qwen image", "python", 2 * (6 + 2 + 4 + 2)),
    ("z image", "python", 6 * 5),
    ("z image, plain refiners", "python", 2 * 5),
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name, naming, quantised", CASES)
def test_what_is_read_is_the_plain_model(nunchaku, tmp_path, name, naming, quantised, grid):
    checkpoint = nunchaku.checkpoint(name, grid, naming)
    found, metadata = read_quantised(save(checkpoint, tmp_path / "m.safetensors"))
    assert metadata == checkpoint.metadata
    assert_is(found, checkpoint.plain)
    weights = [tensor for tensor in found.values() if isinstance(tensor, Weight4)]
    assert len(weights) == quantised
    assert {weight.grid for weight in weights if weight.zero is None} == {grid}
    state = checkpoint.network().state_dict()
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in checkpoint.plain.items()}


def test_a_folder_is_read_like_a_file(nunchaku, tmp_path):
    checkpoint = nunchaku.checkpoint("flux")
    blocks = {key: value for key, value in checkpoint.tensors.items() if "transformer_blocks." in key}
    others = {key: value for key, value in checkpoint.tensors.items() if key not in blocks}
    for part, tensors in zip(FOLDER_PARTS, (blocks, others), strict=True):
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / part)
    for setting in ("config", "comfy_config"):
        (tmp_path / f"{setting}.json").write_text(checkpoint.metadata[setting])
    found, metadata = read_quantised(tmp_path)
    assert_is(found, checkpoint.plain)
    assert json.loads(metadata["comfy_config"])["model_class"] == "Flux"


@pytest.mark.parametrize("name", ["flux", "qwen image", "z image"])
def test_a_file_without_metadata_is_known_by_its_tensors(nunchaku, tmp_path, name):
    checkpoint = nunchaku.checkpoint(name)
    save_file({key: value.contiguous() for key, value in checkpoint.tensors.items()}, tmp_path / "m.safetensors")
    assert_is(read_quantised(tmp_path / "m.safetensors")[0], checkpoint.plain)


def test_parts_of_one_layer_share_their_input_tensors(nunchaku, tmp_path):
    found, _ = read_quantised(save(nunchaku.checkpoint("qwen image"), tmp_path / "m.safetensors"))
    for names in (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")):
        q, k, v = (found[f"transformer_blocks.1.attn.{name}.weight"] for name in names)
        assert q.smooth is k.smooth is v.smooth and q.proj_down is k.proj_down is v.proj_down


@pytest.mark.parametrize("grid", GRIDS)
def test_unsigned_inputs(nunchaku, tmp_path, grid):
    """After a GELU, and in FLUX's single blocks behind the attention's output; NVFP4 has a sign everywhere."""
    found, _ = read_quantised(save(nunchaku.checkpoint("flux", grid), tmp_path / "m.safetensors"))
    begins = {name: tensor.unsigned_from for name, tensor in found.items() if isinstance(tensor, Weight4)}
    unsigned = {name: begin for name, begin in begins.items() if begin is not None}
    expected = {"double_blocks.0.img_mlp.2": 0, "double_blocks.0.txt_mlp.2": 0}
    expected |= {f"single_blocks.{number}.linear2": 256 for number in range(2)}
    assert unsigned == ({f"{name}.weight": at for name, at in expected.items()} if grid == INT4 else {})


def test_edit_models_keep_their_marker(nunchaku, tmp_path):
    """ComfyUI tells the edit model of November 2025 by an empty tensor, diffusers by a setting."""
    checkpoint = nunchaku.checkpoint("qwen image")
    path = save(checkpoint, tmp_path / "m.safetensors", config=json.dumps({"zero_cond_t": True}))
    assert read_quantised(path)[0].keys() - checkpoint.plain.keys() == {"__index_timestep_zero__"}


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer.", "model."])
@pytest.mark.parametrize("name", ["flux", "z image"])
def test_what_stands_before_the_names_does_not_matter(nunchaku, tmp_path, name, prefix):
    checkpoint = nunchaku.checkpoint(name)
    tensors = {f"{prefix}{key}": tensor.contiguous() for key, tensor in checkpoint.tensors.items()}
    # Another network's, in a checkpoint of everything.
    tensors["first_stage_model.encoder.conv_in.weight"] = torch.zeros(4, 4)
    save_file(tensors, tmp_path / "m.safetensors", metadata=checkpoint.metadata)
    assert_is(read_quantised(tmp_path / "m.safetensors")[0], checkpoint.plain)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name, quantised", [("flux", 8 + 2 + 2 * 3), ("qwen image", 2 * 14), ("z image", 6 * 5)])
def test_layers_under_diffusers_names_are_the_plain_model(nunchaku, tmp_path, name, quantised, grid):
    """As nunchaku_lite writes them."""
    checkpoint = nunchaku.split_checkpoint(name, grid)
    found, _ = read_quantised(save(checkpoint, tmp_path / "m.safetensors"))
    assert_is(found, checkpoint.plain)
    assert sum(isinstance(tensor, Weight4) for tensor in found.values()) == quantised


def test_layers_that_one_layer_cannot_hold_are_expanded(nunchaku, tmp_path):
    """q, k and v of unlike smoothing become a plain layer: 16 bits of what they stand for."""
    checkpoint = nunchaku.split_checkpoint("flux", alike=False)
    found, _ = read_quantised(save(checkpoint, tmp_path / "m.safetensors"))
    plain = [name for name in found if name.endswith(("qkv.weight", "linear1.weight"))]
    assert len(plain) == 4
    for name, tensor in found.items():
        if name in plain:
            assert tensor.dtype == torch.bfloat16
            assert_close(tensor, checkpoint.plain[name], units=1, dtype=torch.bfloat16, what=name)
        elif isinstance(tensor, Weight4):
            assert_close(dequantise(tensor), checkpoint.plain[name], what=name)


def test_comfy_quant_layers_under_diffusers_names_are_the_plain_model(comfy, nunchaku, tmp_path):
    """FLUX, of which ComfyUI has q, k and v in one layer, and those of a single block with a layer that is plain."""
    import comfy.model_detection

    dense = nunchaku.diffusers_state("flux")
    packed = dict(dense)
    for key, weight in dense.items():
        if ("attn.to_" in key or "attn.add_" in key) and key.endswith(".weight"):
            packed[key] = quantise(weight, torch.full((weight.shape[1],), 2.0))
            dense[key] = dequantise(packed[key])
    tensors, metadata = tensors_of(packed)
    save_file(tensors, tmp_path / "m.safetensors", metadata=metadata)
    found, _ = read_quantised(tmp_path / "m.safetensors")
    assert sum(isinstance(tensor, Weight4) for tensor in found.values()) == 4
    assert_is(found, comfy.model_detection.convert_diffusers_mmdit(dense))


@pytest.mark.parametrize(
    "names, expected",
    [
        (["encoder.block.0.layer.0.SelfAttention.q.qweight"], "a T5 text encoder in 4 bits"),
        (["blocks.0.attn.q.weight"], r"blocks\.0\.attn\.q\.weight in torch\.int8, and no \.comfy_quant"),
    ],
)
def test_what_no_reader_knows_is_said(tmp_path, names, expected):
    save_file({name: torch.zeros(4, 4, dtype=torch.int8) for name in names}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=f"expected a 4-bit model .*, found {expected}"):
        read_quantised(tmp_path / "m.safetensors")


def test_a_shard_is_said_to_be_one(nunchaku, tmp_path):
    path = save(nunchaku.checkpoint("flux"), tmp_path / "svdq-00001-of-00003.safetensors")
    with pytest.raises(ValueError, match="found shard 1 of 3"):
        read_quantised(path)


@pytest.mark.parametrize("part", ["wscales", "proj_down", "smooth_factor"])
def test_what_is_left_of_a_layer_is_refused_by_name(nunchaku, tmp_path, part):
    checkpoint = nunchaku.checkpoint("z image")
    checkpoint.tensors[f"layers.0.unknown.{part}"] = torch.zeros(4, 4)
    path = save(checkpoint, tmp_path / "m.safetensors")
    del checkpoint.tensors[f"layers.0.unknown.{part}"]
    with pytest.raises(ValueError, match=rf"layers\.0\.unknown\.{part}: expected .*qweight beside it"):
        read_quantised(path)
