"""4-bit models, loaded as ComfyUI models, beside the plain models that they stand for."""

import importlib
import logging

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.quant import compute
from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.accel.quant.weight4 import E2M1, INT4, Weight4
from dit_accel.tests.support.quantised_wan import LAYERS, quantised

BLOCKS = 2
CLOSE = 1e-3


@pytest.fixture(scope="session")
def load(comfy):
    return importlib.import_module("dit_accel.accel.comfy.quant.svdquant").load


@pytest.fixture(scope="session")
def layers(comfy):
    return importlib.import_module("dit_accel.accel.comfy.quant.weight4_layout").layers


@pytest.fixture(scope="session")
def nunchaku(comfy):
    return importlib.import_module("dit_accel.tests.support.nunchaku_checkpoints")


@pytest.fixture(scope="module")
def wan(tiny):
    """A case that ComfyUI recognises by its tensors."""
    module = importlib.import_module("dit_accel.tests.comfy.tiny.wan")
    return tiny.CASES[0].__class__("wan", "WAN21_T2V", {**module.WAN, "text_dim": 4096}, (1, 16, 5, 12, 14), 2)


@pytest.fixture(scope="module")
def states(wan):
    """The state dict in 4 bits, and the plain one, by grid."""
    with torch.inference_mode():
        plain = {name: tensor.clone() for name, tensor in wan.model().model.diffusion_model.state_dict().items()}
        return {grid: quantised(plain, grid) for grid in (INT4, E2M1)}


def write(path, packed):
    tensors, metadata = tensors_of(packed)
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def files(states, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    return {grid: write(folder / f"{grid}.safetensors", packed) for grid, (packed, _) in states.items()}


@pytest.fixture(scope="module")
def plain(comfy, states):
    """The plain dequantised models by grid."""
    import comfy.sd

    with torch.inference_mode():
        return {grid: comfy.sd.load_diffusion_model_state_dict(dict(dense)) for grid, (_, dense) in states.items()}


def save(checkpoint, folder):
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, folder / "m.safetensors", checkpoint.metadata)
    return folder / "m.safetensors"


def sample(model, shape, text=(20, 4096), **options):
    import comfy.sample

    latent = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    random = torch.Generator().manual_seed(2)
    condition = [[torch.randn(1, *text, generator=random), options]]
    return comfy.sample.sample(
        model, latent, 2, 2.0, "euler", "simple", condition, condition, torch.zeros_like(latent), seed=1
    )


def video(model):
    return sample(model, (1, 16, 5, 12, 14))


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("grid", [INT4, E2M1])
def test_wan_is_the_plain_model(load, layers, files, plain, grid):
    model = load(files[grid])
    assert len(layers(model.model)) == BLOCKS * len(LAYERS)
    assert {layer.path for layer in layers(model.model).values()} == {compute.W4A16}
    assert distance(video(model), video(plain[grid])) < CLOSE


def test_sparse_attention_on_top(tiny, load, files, plain):
    model, dense = (tiny.sparse(each, top_p=0.5, floor=0.0) for each in (load(files[INT4]), plain[INT4]))
    found, expected = video(model), video(dense)
    assert distance(found, expected) < CLOSE
    assert distance(expected, video(plain[INT4])) > 10 * CLOSE
    (run,) = tiny.history(model)
    assert run.sparse == {"torch": BLOCKS * run.forwards} and run.forwards > 1


@pytest.mark.parametrize("grid", [INT4, E2M1])
def test_flux_is_the_plain_model(load, layers, nunchaku, tmp_path, grid):
    import comfy.sd

    checkpoint = nunchaku.checkpoint("flux", grid)
    save_file(
        {k: v.contiguous() for k, v in checkpoint.tensors.items()}, tmp_path / "m.safetensors", checkpoint.metadata
    )
    model = load(tmp_path / "m.safetensors")
    dense = comfy.sd.load_diffusion_model_state_dict(
        {name: tensor.clone() for name, tensor in checkpoint.plain.items()}
    )
    assert len(layers(model.model)) == 16
    options = {"pooled_output": torch.ones(1, 768), "guidance": 3.5}
    shape = (1, model.model.latent_format.latent_channels, 16, 16)
    found, expected = (sample(each, shape, (20, 64), **options) for each in (model, dense))
    assert expected.std() > 0.1
    assert distance(found, expected) < CLOSE


@pytest.mark.parametrize("name", ["qwen image", "z image"])
@pytest.mark.parametrize("grid", [INT4, E2M1])
def test_networks_that_comfyui_knows_in_one_width_only(layers, nunchaku, tmp_path, name, grid):
    """Its detection assumes the published widths; the network itself, with our operations, does not care."""
    from dit_accel.accel.comfy.quant import operations as quant_ops
    from dit_accel.accel.comfy.quant import svdquant
    from dit_accel.accel.quant.formats.reading import read_quantised

    checkpoint = nunchaku.checkpoint(name, grid)
    save_file(
        {k: v.contiguous() for k, v in checkpoint.tensors.items()}, tmp_path / "m.safetensors", checkpoint.metadata
    )
    tensors, _ = read_quantised(tmp_path / "m.safetensors")
    kind = nunchaku.KINDS[name]
    operations = quant_ops.operations(torch.float32, lambda weight: compute.W4A16)
    network = kind.network(**kind.settings, dtype=torch.float32, device="cpu", operations=operations)
    network.load_state_dict(svdquant.packed(tensors, torch.float32))
    quantised_layers = [tensor for tensor in tensors.values() if isinstance(tensor, Weight4)]
    assert len(layers(network)) == len(quantised_layers) > 20
    dense = nunchaku.network(kind)
    dense.load_state_dict(checkpoint.plain)
    found, expected = (_forward(each, name) for each in (network, dense))
    assert expected.std() > 0.1
    assert distance(found, expected) < CLOSE


def _forward(network, name):
    random = torch.Generator().manual_seed(3)
    shape = (1, 16, 1, 8, 8) if name == "qwen image" else (1, 16, 8, 8)
    latent, context = torch.randn(shape, generator=random), torch.randn(1, 20, 64, generator=random)
    options = {} if name == "qwen image" else {"num_tokens": 20}
    return network(latent, torch.tensor([0.5]), context, attention_mask=None, **options)


def test_every_arithmetic_gives_about_the_same(load, layers, files, plain, monkeypatch, caplog):
    """With a stand-in for the card; what runs then is each library's own code for the CPU. Weights are random: 4 bits
    lose more on them than on trained ones."""
    expected = video(plain[INT4])
    for requested, card, path, loss in (
        ("auto", compute.Card("sm_89"), compute.W4A4, 0.3),
        ("w4a4", compute.Card("sm_86"), compute.W4A4, 0.3),
        ("w8a8", compute.Card("sm_90"), compute.INT8, 0.05),
        ("w8a8", compute.Card("sm_90", int_mm="none here"), compute.FP8, 0.1),
        ("auto", compute.Card("sm_90"), compute.W4A16, CLOSE),
        ("w4a16", compute.Card("sm_80"), compute.W4A16, CLOSE),
    ):
        monkeypatch.setattr("dit_accel.accel.comfy.quant.svdquant.card_of", lambda device, card=card: card)
        with caplog.at_level(logging.INFO):
            model = load(files[INT4], requested)
        assert {layer.path for layer in layers(model.model).values()} == {path}
        assert f"{path}: {BLOCKS * len(LAYERS)}" in caplog.text
        found = distance(video(model), expected)
        assert found < loss, (requested, found)
        if path != compute.W4A16:
            assert found > CLOSE
        caplog.clear()


def test_one_quantised_input_for_q_k_and_v(load, layers, files, monkeypatch):
    monkeypatch.setattr("dit_accel.accel.comfy.quant.svdquant.card_of", lambda device: compute.Card("sm_90"))
    model = load(files[INT4], "w8a8")
    found = layers(model.model)
    attention = "diffusion_model.blocks.1.self_attn"
    names = tuple(f"{attention}.{layer}" for layer in "qkv")
    assert {found[name].sibling.group for name in names} == {names}
    assert found[f"{attention}.o"].sibling is None
    calls = []
    real = importlib.import_module("dit_accel.accel.quant.linear").quantise_rows
    monkeypatch.setattr(
        "dit_accel.accel.quant.linear.quantise_rows", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs)
    )
    video(model)
    forwards = 2
    # Each layer quantises its weight, and each but two of q, k and v its input.
    assert len(calls) == forwards * BLOCKS * (len(LAYERS) + len(LAYERS) - 2)


@pytest.mark.parametrize("requested", ["w4a4", "w8a8", "w4a8", "nvfp4"])
def test_what_the_cpu_cannot_run_is_refused(load, files, requested):
    with pytest.raises(ValueError, match=f"compute: {requested}"):
        load(files[INT4], requested)


def test_offloading_changes_nothing(load, files):
    """As with --novram, --lowvram and when memory runs out: no layer on the device, some, and all."""
    import comfy.model_management as management

    model = load(files[INT4])
    expected = video(model)
    cpu = torch.device("cpu")
    for memory in (1, model.model_size() // 2):
        other = load(files[INT4])
        other.patch_model(cpu, lowvram_model_memory=memory)
        assert other.model.model_lowvram
        with pytest.MonkeyPatch.context() as patch:
            # Otherwise ComfyUI loads all of it before it samples.
            patch.setattr(management, "load_models_gpu", lambda *args, **kwargs: None)
            assert torch.equal(video(other), expected)
    other = load(files[INT4])
    video(other)
    assert other.partially_unload(cpu, other.model_size() // 2) > 0
    assert torch.equal(video(other), expected)


def test_a_second_patcher_from_the_same_file(load, files):
    """What ComfyUI does for a copy that is loaded another way."""
    model = load(files[INT4])
    make, arguments = model.cached_patcher_init
    assert torch.equal(video(make(*arguments, disable_dynamic=True)), video(model))


def test_memory_of_a_14b_block(load):
    """As ComfyUI counts it, of 16 bits a weight."""
    from comfy.model_management import module_size

    from dit_accel.accel.comfy.quant import operations as quant_ops
    from dit_accel.accel.comfy.quant import svdquant

    half = torch.bfloat16
    operations = quant_ops.operations(half, lambda weight: compute.W4A16)
    packed = dense = 0
    for rows, columns in [(5120, 5120)] * 8 + [(13824, 5120), (5120, 13824)]:
        with torch.device("meta"):
            weight = Weight4(
                torch.empty(rows, columns // 2, dtype=torch.int8),
                torch.empty(columns // 64, rows, dtype=half),
                smooth=torch.empty(columns, dtype=half),
                proj_down=torch.empty(columns, 32, dtype=half),
                proj_up=torch.empty(rows, 32, dtype=half),
            )
            layer = operations.Linear(columns, rows, dtype=half)
            layer.load_state_dict(svdquant.packed({"weight": weight, "bias": torch.empty(rows, dtype=half)}, half))
        packed += module_size(layer)
        dense += 2 * (rows * columns + rows)
    assert packed <= 0.29 * dense


def test_a_file_of_another_model(load, tmp_path, states):
    packed, _ = states[INT4]
    lone = {name: tensor for name, tensor in packed.items() if name.startswith("blocks.0.ffn")}
    with pytest.raises(ValueError, match=r"lone.safetensors: expected a diffusion model that ComfyUI knows"):
        load(write(tmp_path / "lone.safetensors", lone))
    less = {name: tensor for name, tensor in packed.items() if not name.startswith("blocks.1.ffn.2")}
    with pytest.raises(ValueError, match=r"less.safetensors: .*found none of blocks.1.ffn.2"):
        load(write(tmp_path / "less.safetensors", less))
    wider = {**packed, "blocks.1.ffn.2.weight": packed["blocks.1.self_attn.q.weight"]}
    with pytest.raises(
        ValueError, match=r"(?s)wider.safetensors: .*blocks.1.ffn.2.weight: expected shape \(256, 128\)"
    ):
        load(write(tmp_path / "wider.safetensors", wider))
    more = {**packed, "blocks.0.ffn.9.weight": packed["blocks.1.ffn.0.weight"]}
    with pytest.raises(ValueError, match=r"more.safetensors: WanModel has no layer blocks.0.ffn.9"):
        load(write(tmp_path / "more.safetensors", more))
