"""The demo's graph in ComfyUI's API format: the bundled model from noise to frames."""

from __future__ import annotations

from typing import Any

from ..comfy.folders import BUNDLED, FOLDER

MODEL = "dit_accel_demo_dit.safetensors"
VAE = "dit_accel_demo_vae.safetensors"
PROMPT = "dit_accel_demo_{}.safetensors"
# The noise schedule the model was trained with.
SHIFT = 3.0
SEED = 7


def prompts() -> list[str]:
    """Names of the prompts that the bundled model knows."""
    before, after = PROMPT.split("{}")
    files = sorted((BUNDLED / FOLDER).glob(PROMPT.format("*")))
    return [file.name.removeprefix(before).removesuffix(after) for file in files]


def graph(
    prompt: str,
    *,
    width: int,
    height: int,
    frames: int,
    steps: int,
    prefix: str,
    sparse: dict[str, Any] | None,
    seed: int = SEED,
    decode: bool = True,
) -> dict[str, Any]:
    """Samples a clip and saves its latent and, if asked to `decode` it, its frames (PNG) under `prefix`.

    sparse: the inputs of DitAccelBudget (`budget`) and DitAccelSparseAttention's `pattern` and `fallback`, or None
    for the graph without these nodes.
    """
    nodes = {
        "model": _node("UNETLoader", unet_name=MODEL, weight_dtype="default"),
        "schedule": _node("ModelSamplingSD3", model=["model", 0], shift=SHIFT),
        "prompt": _node("DitAccelLoadConditioning", conditioning_name=PROMPT.format(prompt)),
        "empty": _node("EmptyHunyuanLatentVideo", width=width, height=height, length=frames, batch_size=1),
        "sample": _node(
            "KSampler",
            model=["schedule", 0],
            seed=seed,
            steps=steps,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            positive=["prompt", 0],
            negative=["prompt", 0],
            latent_image=["empty", 0],
            denoise=1.0,
        ),
        "save latent": _node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
    }
    if decode:
        nodes["vae"] = _node("VAELoader", vae_name=VAE)
        nodes["decode"] = _node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
        nodes["save frames"] = _node("SaveImage", images=["decode", 0], filename_prefix=prefix)
    if sparse is not None:
        nodes["budget"] = _node("DitAccelBudget", **sparse["budget"])
        nodes["sparse"] = _node(
            "DitAccelSparseAttention",
            model=["schedule", 0],
            pattern=sparse["pattern"],
            precision="auto",
            token_order="auto",
            guard="on",
            fallback=sparse["fallback"],
            budget=["budget", 0],
        )
        nodes["sample"]["inputs"]["model"] = ["sparse", 0]
    return nodes


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
