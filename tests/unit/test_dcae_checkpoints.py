"""DC-AE files: names in three formats against MIT's and diffusers' own, and files that are not what they should be."""

import pickle
import re
from collections import OrderedDict
from math import prod

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import load_file, save, save_file

from dit_accel.accel.dcae.checkpoint import read
from dit_accel.accel.dcae.config import CONFIGS, EVIT, INTERPOLATE, STRIDED, Config, Stage
from dit_accel.accel.dcae.keys import DIFFUSERS, FORMATS, MIT, from_ours, to_ours
from dit_accel.accel.dcae.network import DCAE
from dit_accel.accel.dcae.shapes import expected_shapes
from dit_accel.tests.support.dcae_files import MIT_SHAPES, TINY, diffusers_settings, golden, in_file

PARAMETERS = {
    "f32c32-in-1.0": 323_356_460,
    "f32c32-mix-1.0": 323_356_460,
    "f64c128-in-1.0": 676_896_140,
    "f64c128-mix-1.0": 676_896_140,
    "f128c512-in-1.0": 1_120_682_252,
    "f128c512-mix-1.0": 1_120_682_252,
    "f32c32-sana-1.0": 312_250_275,
    "f32c32-sana-1.1": 312_250_275,
    "lite-f32c32": 421_181_228,
    "f32c128-1.5": 523_609_740,
    "f64c128-1.5": 714_741_644,
}
# An unpublished make-up: outermost convolutions that take a step, strided and after interpolation.
_STAGES = (Stage(8, 0), Stage(8, 1), Stage(16, 1, EVIT, (3, 5)))
STEPPED = Config("strided", 4, _STAGES, _STAGES, STRIDED, INTERPOLATE, head_dim=8)


def written(tmp_path, tensors, name="tiny.safetensors"):
    save_file(tensors, tmp_path / name)
    return tmp_path / name


@pytest.fixture(params=TINY)
def tiny(request):
    """MIT's tensors of a tiny autoencoder, and the configuration."""
    return load_file(golden(request.param)), read(golden(request.param))[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_exactly(name):
    assert CONFIGS.keys() == PARAMETERS.keys()
    shapes = expected_shapes(CONFIGS[name])
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(prod(shape) for key, shape in shapes.items() if not key.endswith(buffers)) == PARAMETERS[name]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=lambda config: config.name)
def test_our_names_and_shapes_are_those_of_the_network(config):
    state = DCAE(config, device="meta").state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected_shapes(config)


@pytest.mark.parametrize("name", MIT_SHAPES)
def test_names_and_shapes_are_those_of_mits_code(name):
    published = {key: tuple(shape) for key, shape in MIT_SHAPES[name].items()}
    assert in_file(CONFIGS[name.removeprefix("dc-ae-")], MIT) == published


@pytest.mark.parametrize("config", [*CONFIGS.values(), STEPPED], ids=lambda config: config.name)
def test_names_and_shapes_are_those_of_diffusers(config):
    with torch.device("meta"):
        model = AutoencoderDC(**diffusers_settings(config))
    assert in_file(config, DIFFUSERS) == {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_mits_outermost_strided_convolution_is_named_as_an_ordinary_one():
    assert in_file(STEPPED, MIT)["encoder.project_in.conv.weight"] == (8, 3, 3, 3)
    assert in_file(STEPPED, MIT)["decoder.project_out.op_list.2.conv.conv.weight"] == (3, 8, 3, 3)


def test_end_convolutions_of_1_5_have_no_main():
    names = in_file(CONFIGS["f32c128-1.5"], MIT)
    assert {"encoder.project_out.op_list.0.conv.weight", "decoder.project_in.conv.weight"} <= names.keys()
    assert not any(name.startswith(("encoder.project_out.main", "decoder.project_in.main")) for name in names)


def test_round_trips_change_no_byte(tiny):
    tensors, config = tiny
    ours = to_ours(tensors, config, MIT)
    assert {name: tuple(value.shape) for name, value in ours.items()} == expected_shapes(config)
    assert save(from_ours(ours, config, MIT)) == save(tensors)
    diffusers = from_ours(ours, config, DIFFUSERS)
    assert diffusers.keys() == in_file(config, DIFFUSERS).keys()
    again = to_ours(diffusers, config, DIFFUSERS)
    assert save(again) == save(ours)
    assert save(from_ours(again, config, MIT)) == save(tensors)


def test_batch_norm_keeps_its_counter():
    """A number of a type of its own, which a map for weights may lose."""
    tensors = load_file(golden("mix"))
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    for index, name in enumerate(counters):
        tensors[name] = torch.tensor(7 + index)
    config = read(golden("mix"))[0]
    back = to_ours(from_ours(to_ours(tensors, config, MIT), config, DIFFUSERS), config, DIFFUSERS)
    found = [value for name, value in back.items() if name.endswith("num_batches_tracked")]
    assert [(value.item(), value.dtype) for value in found] == [(7, torch.int64)]


def test_diffusers_matrices_are_rows_of_one():
    """Not queries, keys and values: joined in file order, split in heads of 3 x 32 rows."""
    tensors, config = load_file(golden("mix")), read(golden("mix"))[0]
    theirs = from_ours(to_ours(tensors, config, MIT), config, DIFFUSERS)
    fused = tensors["encoder.stages.2.op_list.0.context_module.main.qkv.conv.weight"]
    for start, part in zip((0, 32, 64), "qkv", strict=True):
        found = theirs[f"encoder.down_blocks.2.0.attn.to_{part}.weight"]
        assert torch.equal(found, fused[start : start + 32, :, 0, 0])


@pytest.mark.parametrize("which", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_formats_read_alike(which, dtype, tmp_path):
    tensors, config = load_file(golden(which)), read(golden(which))[0]
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    ours = to_ours(cast, config, MIT)
    for form in FORMATS:
        path = written(tmp_path, from_ours(ours, config, form), f"{form.name}.safetensors")
        found, read_back = read(path)
        assert found == config
        assert save(read_back) == save(ours)


def test_prefixes_and_pickles(tmp_path, tiny):
    tensors, config = tiny
    ours = save(to_ours(tensors, config, MIT))
    files = {
        "vae.safetensors": {f"vae.{name}": value for name, value in tensors.items()},
        "plain.pth": tensors,
        "ordered.bin": OrderedDict(tensors),
        "inner.pt": {"state_dict": {f"first_stage_model.{name}": value for name, value in tensors.items()}, "step": 3},
        "whole.safetensors": {f"vae.{name}": value for name, value in tensors.items()}
        | {"model.diffusion_model.blocks.0.weight": torch.zeros(2)},
    }
    for name, content in files.items():
        path = tmp_path / name
        save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
        found, read_back = read(path)
        assert found == config
        assert save(read_back) == ours
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert save(read(tmp_path / "old.pt")[1]) == ours


def refused(path, *words):
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read(path)
    for word in words:
        assert word in str(caught.value)


def test_missing_and_extra_tensors_are_named_as_in_the_file(tmp_path, tiny):
    tensors, config = tiny
    for form in FORMATS:
        whole = from_ours(to_ours(tensors, config, MIT), config, form)
        for name, shape in in_file(config, form).items():
            if name.endswith(("conv1.conv.weight", "to_k.weight", "conv_in.bias", "project_in.main.conv.bias")):
                less = {key: value for key, value in whole.items() if key != name}
                refused(written(tmp_path, less), name, f"expected this tensor {list(shape)}", "found none")
        refused(
            written(tmp_path, whole | {"decoder.extra.weight": torch.zeros(1)}), "decoder.extra.weight: expected no"
        )
        block = "encoder.stages.1.op_list.0" if form is MIT else "encoder.down_blocks.1.0"
        less = {key: value for key, value in whole.items() if not key.startswith(f"{block}.")}
        if len(less) < len(whole) and config.encoder[1].depth > 1:
            refused(written(tmp_path, less), f"{block}.", "and 4 more", "found none")


def test_wrong_shapes_and_types_are_named(tmp_path, tiny):
    tensors, config = tiny
    name = "decoder.stages.1.op_list.1.main.conv1.conv.bias"
    for value, words in (
        (torch.zeros(17), ("expected [16]", "found [17]")),
        (torch.zeros(16, dtype=torch.float64), ("expected float32 or bfloat16 or float16", "found float64")),
        (torch.zeros(16, dtype=torch.int8), ("expected float32", "found int8")),
        (torch.zeros(16).to(torch.float8_e4m3fn), ("expected float32", "found float8_e4m3fn")),
    ):
        refused(written(tmp_path, tensors | {name: value}), name, *words)
    theirs = from_ours(to_ours(tensors, config, MIT), config, DIFFUSERS)
    name = "decoder.up_blocks.2.1.attn.to_k.weight"
    refused(written(tmp_path, theirs | {name: torch.zeros(32, 31)}), name, "expected [32, 32]", "found [32, 31]")


class Evil:
    def __reduce__(self):
        return (open, ("evil", "w"))


def test_broken_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = golden("sana").read_bytes()
    torch.save(load_file(golden("sana")), tmp_path / "renamed.safetensors")
    refused(tmp_path / "renamed.safetensors", "expected a safetensors file, found a pickle")
    for name, content in (("short", whole[:-100]), ("head", whole[:50]), ("empty", b""), ("text", b"hello" * 9)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        refused(path, "expected a safetensors file, found a broken one")
    pickled = (tmp_path / "renamed.safetensors").read_bytes()
    for name, content in (
        ("short", pickled[: len(pickled) // 2]),
        ("empty", b""),
        ("text", b"hello"),
        ("safetensors", whole),
        ("evil", pickle.dumps({"encoder.conv_in.weight": Evil()}, protocol=2)),
    ):
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        refused(path, "expected a pickle of tensors only")
    assert not (tmp_path / "evil").exists()
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "expected tensors by name, found a list")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "epoch: expected a tensor, found a int")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.safetensors")


def test_a_pickle_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"encoder.conv_in.weight": Evil()}, tmp_path / "evil.pth")
    refused(tmp_path / "evil.pth", "expected a pickle of tensors only")
    assert not (tmp_path / "evil").exists()
