"""Short runs of the tiny Wan, and what its results are compared by."""

from __future__ import annotations

import torch


def sample(model):
    import comfy.sample

    random = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 16, 3, 8, 10, generator=random)
    condition = [[torch.randn(1, 20, 4096, generator=random), {}]]
    return comfy.sample.sample(
        model, latent, 2, 1.0, "euler", "simple", condition, condition, torch.zeros_like(latent), seed=1
    )


def loaded(model, lora, strength=1.0):
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


def distance(found, expected):
    """The norm of the difference as a part of the norm of what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


def merging(name, *numbers):
    """A core node of two models and some numbers as a function of the two."""
    from comfy_extras import nodes_model_merging

    node = getattr(nodes_model_merging, name)()
    return lambda first, second: node.merge(first, second, *numbers)[0]


def scheduled(model, lora, strengths, node="lora"):
    """A run whose condition has a LoRA by a hook, of these strengths over the run."""
    import comfy.hooks
    import comfy.sample

    hooks = (
        comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
        if node == "lora"
        else comfy.hooks.create_hook_model_as_lora(comfy.hooks.get_patch_weights_from_model(lora), None, 1.0, 0.0)
    )
    keyframes = comfy.hooks.HookKeyframeGroup()
    for number, strength in enumerate(strengths):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start_percent=number / len(strengths), guarantee_steps=1))
    hooks.set_keyframes_on_hooks(keyframes)
    random = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 16, 3, 8, 10, generator=random)
    empty = [[torch.randn(1, 20, 4096, generator=random), {}]]
    positive = comfy.hooks.set_hooks_for_conditioning([[torch.randn(1, 20, 4096, generator=random), {}]], hooks)
    return comfy.sample.sample(
        model, latent, 4, 2.0, "euler", "simple", positive, empty, torch.zeros_like(latent), seed=1
    )


def matrices(state):
    """A LoRA of rank 4 on every layer of the blocks."""
    random = torch.Generator().manual_seed(14)
    lora = {}
    for name, weight in state.items():
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            lora[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], 4, generator=random) * weight.std()
            lora[f"{key}.lora_A.weight"] = torch.randn(4, weight.shape[1], generator=random) / 2
    return lora
