"""LoRAs on 4-bit models through ComfyUI's own loader, beside the same LoRA on the plain model."""

import gc
import importlib
import weakref

import pytest
import torch
from safetensors.torch import save_file

from dit_accel.tests.comfy.quant.sampling import loaded, sample

RANK = 8
FEW = ("self_attn.q", "self_attn.v", "cross_attn.o", "ffn.0", "ffn.2")
TARGETS = [f"blocks.{block}.{layer}" for block in range(2) for layer in FEW]


def low_rank(state, targets=TARGETS, seed=3, size=0.6):
    """Factors (up [N, r], down [r, K]) of a LoRA by layer."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(weight.shape[0], RANK, generator=random) * weight.std(),
            torch.randn(RANK, weight.shape[1], generator=random) / RANK**0.5 * size,
        )
        for name, weight in ((name, state[f"{name}.weight"]) for name in targets)
    }


def native(factors):
    return {
        f"diffusion_model.{name}.{part}.weight": tensor
        for name, (up, down) in factors.items()
        for part, tensor in (("lora_B", up), ("lora_A", down))
    }


def kohya(factors):
    lora = {}
    for name, (up, down) in factors.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        # Half the rank as alpha halves the LoRA: twice the factor makes up for it.
        lora |= {f"{key}.lora_up.weight": 2 * up, f"{key}.lora_down.weight": down}
        lora[f"{key}.alpha"] = torch.tensor(RANK / 2)
    return lora


def assert_same_change(model, plain, lora, strength=1.0):
    before, after = sample(model), sample(loaded(model, lora, strength))
    plain_before, plain_after = sample(plain), sample(loaded(plain, lora, strength))
    change, expected = (after - before).flatten(), (plain_after - plain_before).flatten()
    assert expected.norm() > 0.1 * plain_before.norm()
    assert torch.nn.functional.cosine_similarity(change, expected, dim=0) > 0.99
    assert (after - plain_after).norm() < 1e-3 * plain_after.norm()
    assert torch.equal(sample(model), before)


@pytest.mark.parametrize("names", [native, kohya])
def test_the_change_is_that_of_the_plain_model(model, plain, state, names):
    assert_same_change(model, plain, names(low_rank(state)))


def test_bias_patches(load, file, plain, state):
    """A bias is core's affair."""
    lora = native(low_rank(state, TARGETS[-2:], size=2.0))
    for name in TARGETS:
        lora[f"diffusion_model.{name}.diff_b"] = 0.3 * torch.ones(state[f"{name}.weight"].shape[0])
    assert_same_change(load(file), plain, lora)


def test_strengths_stacks_and_removal_leave_no_residue(model, plain, state):
    first, second = (native(low_rank(state, seed=seed)) for seed in (3, 4))
    before = sample(model)
    strong = sample(loaded(model, first, 1.0))
    both = sample(loaded(loaded(model, first, 0.5), second, -0.7))
    expected = sample(loaded(loaded(plain, first, 0.5), second, -0.7))
    assert (both - expected).norm() < 1e-3 * expected.norm()
    halves = sample(loaded(loaded(model, first, 0.5), first, 0.5))
    assert (halves - strong).norm() < 1e-4 * strong.norm()
    assert torch.equal(sample(loaded(model, first, 1.0)), strong)
    assert torch.equal(sample(loaded(model, first, 0.0)), before)
    assert torch.equal(sample(model), before)
    # The loader leaves a strength of 0 out; other code may not.
    zero = model.clone()
    zero.add_patches({key: patches[0][1] for key, patches in loaded(model, first).patches.items()}, 0.0)
    assert torch.equal(sample(zero), before)


def loha(factors):
    lora = {}
    for name, (up, down) in factors.items():
        for number, (left, right) in enumerate(((up, down), (torch.ones_like(up), down.flip(0)))):
            lora[f"diffusion_model.{name}.hada_w{number + 1}_a"] = left
            lora[f"diffusion_model.{name}.hada_w{number + 1}_b"] = right
    return lora


def lokr(factors):
    return {
        f"diffusion_model.{name}.lokr_w{number}": tensor
        for name, (up, down) in factors.items()
        for number, tensor in (
            (1, 0.3 * up[:4, :4] / up.std()),
            (2, up[: len(up) // 4] @ down[:, : down.shape[1] // 4]),
        )
    }


def dora(factors):
    lora = native(factors)
    return lora | {f"diffusion_model.{name}.dora_scale": up.norm(dim=1)[:, None] for name, (up, _) in factors.items()}


def full(factors):
    return {f"diffusion_model.{name}.diff": up @ down for name, (up, down) in factors.items()}


@pytest.mark.parametrize("kind", [loha, lokr, dora, full])
def test_other_kinds(model, plain, state, kind):
    assert_same_change(model, plain, kind(low_rank(state)))


def test_kinds_together(model, plain, state):
    lora = native(low_rank(state, TARGETS[:5])) | lokr(low_rank(state, TARGETS[5:]))
    assert_same_change(model, plain, lora)
    before = sample(loaded(loaded(plain, native(low_rank(state))), loha(low_rank(state, seed=5))))
    found = sample(loaded(loaded(model, native(low_rank(state))), loha(low_rank(state, seed=5))))
    assert (found - before).norm() < 1e-3 * before.norm()


def test_low_rank_needs_no_dense_weight(model, state, monkeypatch):
    """Nor does what runs beside the layer."""
    from dit_accel.accel.comfy.quant import operations

    def fail(*args):
        raise AssertionError("a weight was patched densely")

    monkeypatch.setattr(operations.lora, "patched", fail)
    for kind in (native, loha, lokr):
        sample(loaded(model, kind(low_rank(state))))
    with pytest.raises(AssertionError, match="densely"):
        sample(loaded(model, full(low_rank(state))))


def test_flux_by_diffusers_names(comfy, load, tmp_path):
    """Their q, k and v are parts of one layer here, and the outputs of a single block one half each."""
    import comfy.sd

    nunchaku = importlib.import_module("dit_accel.tests.support.nunchaku_checkpoints")
    checkpoint = nunchaku.checkpoint("flux")
    save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, tmp_path / "m.safetensors")
    model = load(tmp_path / "m.safetensors")
    plain = comfy.sd.load_diffusion_model_state_dict(dict(checkpoint.plain))
    random = torch.Generator().manual_seed(6)
    lora = {}
    for layer, rows, columns in (
        ("transformer_blocks.0.attn.to_k", 256, 256),
        ("transformer_blocks.0.attn.add_v_proj", 256, 256),
        ("transformer_blocks.0.ff.net.2", 256, 1024),
        ("single_transformer_blocks.0.attn.to_v", 256, 256),
        ("single_transformer_blocks.1.proj_mlp", 1024, 256),
        ("single_transformer_blocks.0.proj_out", 256, 1280),
    ):
        lora[f"transformer.{layer}.lora_B.weight"] = torch.randn(rows, RANK, generator=random) / 16
        lora[f"transformer.{layer}.lora_A.weight"] = torch.randn(RANK, columns, generator=random) / 4

    def run(patcher):
        latent = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
        condition = [[torch.ones(1, 20, 64), {"pooled_output": torch.ones(1, 768), "guidance": 3.5}]]
        arguments = (1, 1.0, "euler", "simple", condition, condition, torch.zeros_like(latent))
        return comfy.sample.sample(patcher, latent, *arguments, seed=1)

    assert len(loaded(model, lora).patches) == 6
    before, after = run(plain), run(loaded(plain, lora))
    assert (after - before).norm() > 0.1 * before.norm()
    assert (run(loaded(model, lora)) - after).norm() < 1e-3 * after.norm()


def test_the_loader_that_goes_beside_layers(model, plain, state):
    """ComfyUI's own bypass loader wraps a layer's forward."""
    import comfy.sd

    lora = native(low_rank(state))
    found, expected = (
        sample(comfy.sd.load_bypass_lora_for_models(each, None, lora, 1.0, 0)[0]) for each in (model, plain)
    )
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert (expected - sample(plain)).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("with_lora", [False, True])
def test_saved_and_loaded_again(model, load, state, tmp_path, with_lora):
    """The LoRA is in the saved layers' rank; without one the file holds the same bits."""
    import comfy.sd

    chosen = loaded(model, native(low_rank(state))) if with_lora else model
    expected = sample(chosen)
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), chosen)
    again = load(tmp_path / "saved.safetensors")
    found = sample(again)
    # The low rank is saved in 16 bits.
    assert (found - expected).norm() <= (1e-2 if with_lora else 0) * expected.norm()
    assert torch.equal(sample(model), sample(load(tmp_path / "saved.safetensors"))) != with_lora


def test_saving_what_no_file_can_hold(model, state, tmp_path):
    import comfy.sd

    chosen = loaded(model, lokr(low_rank(state)))
    sample(chosen)
    with pytest.raises(ValueError, match="saved with LoRAs of low rank only"):
        comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), chosen)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [native, loha, lokr])
def test_layers_that_a_lora_does_not_fit(model, state, kind):
    """Core leaves them out, and says so in the log. Neither this run nor the next one minds."""
    before = sample(model)
    fitting = low_rank(state, TARGETS[:1])
    others = {name: (torch.cat((up, up)), down) for name, (up, down) in low_rank(state, TARGETS[1:3]).items()}
    found = sample(loaded(model, kind(fitting) | kind(others)))
    assert torch.equal(found, sample(loaded(model, kind(fitting))))
    assert not torch.equal(found, before)
    assert torch.equal(sample(model), before)


def test_nothing_of_a_lora_stays_in_memory(load, file, state):
    import comfy.model_management

    model = load(file)
    chosen = loaded(model, native(low_rank(state)))
    sample(chosen)
    patches = [weakref.ref(patch[0][1]) for patch in chosen.patches.values()]
    comfy.model_management.unload_all_models()
    del chosen
    gc.collect()
    assert not any(patch() for patch in patches)
