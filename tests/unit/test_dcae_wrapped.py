"""DC-AE files as training code and packers leave them, and files that would keep a reader busy."""

import json
import re
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from dit_accel.accel.dcae.checkpoint import MOST_TENSORS, read
from dit_accel.accel.dcae.keys import FORMATS, MIT, from_ours
from dit_accel.tests.support.dcae_files import diffusers_settings, golden
from dit_accel.tests.support.dcae_networks import VARIANTS, random_network

TENSORS = load_file(golden("sana"))
CONFIG, OURS = read(golden("sana"))


def loads(path):
    found, tensors = read(path)
    assert found == CONFIG
    assert save(tensors) == save(OURS)


@pytest.mark.parametrize("form", FORMATS, ids=[form.name for form in FORMATS])
@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "ae.",
        "module.ae.",
        "vae.",
        "first_stage_model.",
        "model.first_stage_model.",
        "generator.",
        "pretransform.model.",
        "conditioner.embedders.1.encoder.",
        "_fsdp_wrapped_module.",
    ],
)
def test_what_stands_before_the_names_does_not_matter(tmp_path, prefix, form):
    path = tmp_path / "a.safetensors"
    save_file({prefix + name: tensor for name, tensor in from_ours(OURS, CONFIG, form).items()}, path)
    loads(path)


def test_wrapped_parts(tmp_path):
    """An encoder that was compiled, a decoder in parallel, a block in a checkpoint."""
    path = tmp_path / "a.safetensors"
    wrapped = {}
    for name, tensor in TENSORS.items():
        name = name.replace("encoder.", "encoder._orig_mod.").replace("decoder.", "decoder.module.")
        wrapped[name.replace("op_list.0.", "op_list.0._checkpoint_wrapped_module.")] = tensor
    save_file(wrapped, path)
    loads(path)
    save_file(wrapped | {next(iter(TENSORS)): torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"a\.safetensors: .*: expected one tensor .*, found two"):
        read(path)


OTHER = {name: tensor + 1 for name, tensor in TENSORS.items()}
STATES = {
    "ema": {"ema": TENSORS, "step": 5},
    "ema beside the last weights": {"state_dict": OTHER, "ema": TENSORS},
    "ema by its decay": {"ema": {0.9999: TENSORS}, "state_dict": OTHER},
    "ema with a state of its own": {"ema": {"shadows": TENSORS, "decay": 0.999}},
    "model": {"model": TENSORS, "epoch": torch.tensor(3)},
    "state_dict": {"state_dict": TENSORS, "epoch": 5},
    "module": {"module": TENSORS, "lr": 0.1},
    "model in a state": {"state_dict": {"model": {f"module.{name}": x for name, x in TENSORS.items()}}},
    "under a name of its own": {"autoencoder": TENSORS, "seed": 1},
}


@pytest.mark.parametrize("state", STATES)
def test_training_states_are_searched(tmp_path, state):
    path = tmp_path / "a.pth"
    torch.save(STATES[state], path)
    loads(path)


def test_a_state_that_holds_itself_is_refused(tmp_path):
    state = {"step": 1}
    state["model"] = state
    torch.save(state, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "step: expected a tensor, found a int")


def refused(path, *words):
    start = time.process_time()
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: ") as caught:
        read(path)
    assert time.process_time() - start < 1
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_shard_is_said_to_be_one(tmp_path, suffix):
    path = tmp_path / f"diffusion_pytorch_model-00001-of-00002{suffix}"
    half = dict(list(TENSORS.items())[::2])
    save_file(half, path) if suffix == ".safetensors" else torch.save(half, path)
    refused(path, "expected a whole model in one file, found shard 1 of 2")
    whole = tmp_path / f"model-00001-of-00001{suffix}"
    save_file(TENSORS, whole) if suffix == ".safetensors" else torch.save(TENSORS, whole)
    loads(whole)


def renamed(old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("digits", ["10000", "100000", "999999999", "1" + "0" * 20, "1" + "0" * 5000], ids=len)
@pytest.mark.parametrize("what", ["layer", "stage"])
def test_a_number_that_no_tensors_fill_is_refused_within_a_second(tmp_path, digits, what):
    path = tmp_path / "a.safetensors"
    place = "encoder.stages.2.op_list.1." if what == "layer" else "encoder.stages.2."
    other = f"encoder.stages.2.op_list.{digits}." if what == "layer" else f"encoder.stages.{digits}."
    save_file(renamed(place, other), path)
    refused(path, "expected", "found")


def test_a_depth_is_counted_against_the_tensors_of_its_stage(tmp_path):
    save_file(renamed("encoder.stages.2.op_list.1.", "encoder.stages.2.op_list.100000."), tmp_path / "a.safetensors")
    refused(
        tmp_path / "a.safetensors",
        "expected blocks one after another in stage 2 of the encoder, found a number 100000 and 26 tensors in all",
    )


@pytest.mark.parametrize("count", [MOST_TENSORS // 2, MOST_TENSORS + 1, 100_000])
def test_any_number_of_tensors_is_refused_within_a_second(tmp_path, count):
    """Those that are read, each a layer of its own, and more than are read at all."""
    name = "encoder.stages.1.op_list.{}.main.conv1.conv.bias"
    header = {
        name.format(i): {"dtype": "F32", "shape": [16], "data_offsets": [64 * i, 64 * i + 64]} for i in range(count)
    }
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64 * count))
    refused(path, "expected", "found")


@pytest.mark.parametrize("suffix", [".safetensors", ".sft", ".pth", ".ckpt"])
def test_a_folder_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.mkdir()
    refused(path, "expected", "found a folder")


def test_a_tensor_larger_than_its_memory_is_refused(tmp_path):
    """A pickle may hold a view of one number as a tensor of any size."""
    wide = {name: torch.zeros(1).expand(10**9) if name.endswith("norm.weight") else x for name, x in TENSORS.items()}
    torch.save(wide, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "norm.weight: expected a tensor of numbers in memory, found (1000000000,)")
    sparse = TENSORS | {"decoder.project_out.op_list.0.bias": torch.zeros(16).to_sparse()}
    torch.save(sparse, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "decoder.project_out.op_list.0.bias: expected a tensor of numbers in memory")


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_what_can_be_built_is_not_refused(tmp_path, variant):
    path = tmp_path / "a.safetensors"
    save_file(from_ours(random_network(variant).state_dict(), variant, MIT), path)
    settings = {"_class_name": "AutoencoderDC", **diffusers_settings(variant)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    read(path)


HEADS = {"0": "above 0", "-8": "above 0", "7": "heads of 7 channels, found 32", "true": "above 0", "1e3": "a int"}
SCALES = {"NaN": "nan", "Infinity": "inf", "0": "0", "-1.5": "-1.5", "true": "True"}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("attention_head_dim", *pair) for pair in HEADS.items()),
        *(("scaling_factor", value, f"expected a finite number above 0, found {x}") for value, x in SCALES.items()),
        ("scaling_factor", "[0.3]", "expected a float or int, found [0.3]"),
    ],
)
def test_settings_of_no_network_are_refused(tmp_path, name, value, words):
    path = tmp_path / "a.safetensors"
    # Without further scales, whose tensors tell the size of a head.
    mix = load_file(golden("mix"))
    save_file(mix, path)
    settings = {
        "_class_name": "AutoencoderDC",
        "latent_channels": 8,
        "encoder_layers_per_block": [0, 2, 1, 1],
        "decoder_layers_per_block": [0, 1, 2, 1],
        name: "HERE",
    }
    (tmp_path / "config.json").write_text(json.dumps(settings).replace('"HERE"', value))
    refused(path, words)


def test_widths_that_do_not_divide_are_refused(tmp_path):
    """Tensors that fit each other, of a network that could not run."""
    ours = dict(OURS)
    ours["decoder.conv_in.weight"] = OURS["decoder.conv_in.weight"][:, :7].contiguous()
    for part in ("weight", "bias"):
        ours[f"encoder.conv_out.{part}"] = OURS[f"encoder.conv_out.{part}"][:7].contiguous()
    save_file(from_ours(ours, replace(CONFIG, latent_channels=7), MIT), tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "innermost stage: expected a multiple of 7 channels, found 32")
