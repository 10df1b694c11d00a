"""Merges into and from a 4-bit model by ComfyUI's own nodes, patches of every kind, and LoRAs that hooks schedule: each
beside the same on the plain model that it stands for."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_accel.tests.comfy.quant.sampling import distance, loaded, matrices, merging, sample, scheduled

# Weights of the plain model are fp32, those that are patched here are computed in the input's dtype.
CLOSE = 1e-3


@pytest.fixture
def ordinary(load, file):
    """Dynamic patchers leave the patches of a bias out where there is no GPU."""
    return load(file)


def blocks(first, second):
    from comfy_extras.nodes_model_merging_model_specific import ModelMergeWAN2_1 as node

    shares = {"patch_embedding.": 0.5, "blocks.0.": 0.3, "blocks.1.": 1.0, "head.": 0.6}
    return node().merge(first, second, **shares)[0]


MERGES = {
    "simple": lambda a, b: merging("ModelMergeSimple", 0.4)(a, b),
    "subtract": lambda a, b: merging("ModelSubtract", 0.5)(a, b),
    "add": lambda a, b: merging("ModelAdd")(a, b),
    "blocks": blocks,
}


@pytest.mark.parametrize("merge", MERGES)
def test_a_merge_into_a_4_bit_model_is_the_plain_models(ordinary, plain, other, merge):
    expected = sample(MERGES[merge](plain, other))
    assert distance(expected, sample(plain)) > 0.05
    assert distance(sample(MERGES[merge](ordinary, other)), expected) < CLOSE


@pytest.mark.parametrize("merge", MERGES)
def test_a_merge_from_a_4_bit_model_is_the_plain_models(model, plain, other, merge):
    expected = sample(MERGES[merge](other, plain))
    assert distance(expected, sample(other)) > 0.02
    assert distance(sample(MERGES[merge](other, model)), expected) < CLOSE


def test_a_merge_of_two_4_bit_models_with_a_lora_is_the_plain_models(ordinary, plain, load, file, state):
    merge = MERGES["simple"]
    lora = biases(state)
    expected = sample(merge(plain, loaded(plain, lora)))
    assert distance(expected, sample(plain)) > 0.01
    assert distance(sample(merge(ordinary, loaded(load(file), lora))), expected) < CLOSE


def biases(state):
    random = torch.Generator().manual_seed(12)
    return {
        f"diffusion_model.{name.removesuffix('.bias')}.diff_b": torch.randn(bias.shape, generator=random) / 3
        for name, bias in state.items()
        if name.startswith("blocks.") and name.endswith(".bias")
    }


PATCHES = {
    "scaled": ((None,), 0.0, 9.0),
    "scaled and added to": (("diff", (0.3,)), 1.0, 0.5),
    "replaced": (("set", (0.3,)), 1.0, 1.0),
}


@pytest.mark.parametrize("kind", PATCHES)
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_patch_of_a_layer_that_reads_a_gelu_is_the_plain_models(ordinary, plain, kind, part):
    key = f"diffusion_model.blocks.0.ffn.2.{part}"
    value, strength, scale = PATCHES[kind]
    shape = plain.get_model_object(key).shape
    if isinstance(value[0], str):
        fill = torch.randn(shape, generator=torch.Generator().manual_seed(13)) * value[1][0]
        value = (value[0], (fill,))

    def patched(patcher):
        changed = patcher.clone()
        assert changed.add_patches({key: value}, strength, scale) == [key]
        return sample(changed)

    before = sample(ordinary)
    expected = patched(plain)
    assert distance(expected, sample(plain)) > 0.01
    assert distance(patched(ordinary), expected) < CLOSE
    assert torch.equal(sample(ordinary), before)


def test_a_scheduled_lora_is_the_plain_models(model, plain, state):
    lora = matrices(state) | biases(state)
    before = sample(model)
    for strengths in ((1.0, 0.0, 0.5), (0.0, 1.0)):
        expected = scheduled(plain, lora, strengths)
        assert distance(expected, scheduled(plain, lora, (0.0,))) > 0.05
        assert distance(scheduled(model, lora, strengths), expected) < CLOSE
    assert torch.equal(sample(model), before)


def test_nothing_of_a_scheduled_lora_stays_with_the_model(model, state):
    """Which may wait in the graph for the next run."""
    from dit_accel.accel.comfy.quant.weight4_layout import layers

    scheduled(model, matrices(state), (1.0, 0.5))
    quantised = layers(model.model)
    assert not any(layer.patches()[0] for layer in quantised.values())
    assert not model.get_attachment("dit_accel")


def test_a_model_as_a_scheduled_lora_is_the_plain_models(model, plain, other, load, file):
    expected = scheduled(plain, other, (0.5, 1.0), "model")
    assert distance(expected, scheduled(plain, other, (0.0,), "model")) > 0.02
    assert distance(scheduled(model, other, (0.5, 1.0), "model"), expected) < CLOSE
    assert distance(scheduled(other, model, (0.5, 1.0), "model"), scheduled(other, plain, (0.5, 1.0), "model")) < CLOSE


@pytest.mark.parametrize("patched", [False, True])
def test_a_lora_extracted_from_a_merge_is_the_plain_models(model, plain, other, tmp_path, monkeypatch, patched):
    """Of the difference, not of the codes; a model that was sampled with before has its patches loaded."""
    import folder_paths
    from comfy_extras.nodes_lora_extract import LoraSave

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    found = []
    for name, base in (("found", model), ("expected", plain)):
        difference = merging("ModelSubtract", 1.0)(base, other)
        if patched:
            sample(difference)
        LoraSave.execute(name, 8, "full_diff", True, model_diff=difference)
        found.append(load_file(next(tmp_path.glob(f"{name}*"))))
    for name in (f"diffusion_model.blocks.0.ffn.2.{part}" for part in ("diff", "diff_b")):
        assert distance(found[0][name].float(), found[1][name].float()) < 1e-2


def test_a_merged_4_bit_model_is_not_saved_without_its_merge(model, other, tmp_path):
    import comfy.sd

    merged = MERGES["simple"](model, other)
    sample(merged)
    with pytest.raises(ValueError, match="LoRAs of low rank only"):
        comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), merged)
    assert not list(tmp_path.iterdir())


def test_biases_are_saved_as_patched_and_read_again(ordinary, load, state, tmp_path):
    """The file's format holds the one for a shifted input."""
    import comfy.sd

    chosen = loaded(ordinary, biases(state))
    expected = sample(chosen)
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), chosen)
    assert distance(sample(load(tmp_path / "saved.safetensors")), expected) < CLOSE


def test_a_models_state_dict_is_never_written_as_plain_bytes(model, tmp_path):
    """Its weights have more elements than their codes have bytes."""
    tensors = {name: tensor for name, tensor in model.model.state_dict().items() if name.endswith("ffn.2.weight")}
    with pytest.raises(TypeError, match="Save Checkpoint"):
        save_file(tensors, tmp_path / "m.safetensors")
