"""ComfyUI's Python code inside this process, for commands and tests that need its models without a server."""

from __future__ import annotations

import sys
from pathlib import Path


def import_comfyui(comfyui: Path, *arguments: str) -> None:
    """Makes ComfyUI's modules importable and sets its command line to `arguments` (such as "--cpu").

    The first call decides: ComfyUI reads its command line once per process.
    """
    if "comfy.options" in sys.modules:
        return
    sys.path.insert(0, str(comfyui))
    own = sys.argv
    sys.argv = [own[0], *arguments]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = own


def import_models(comfyui: Path) -> None:
    """`import_comfyui` with `device_arguments`, and its diffusion models and samplers. Raises ImportError naming the
    package that they miss."""
    import_comfyui(comfyui, *device_arguments())
    import comfy.sample
    import comfy.supported_models  # noqa: F401


def device_arguments() -> list[str]:
    """The part of ComfyUI's command line that this machine's devices ask for.

    A CPU that multiplies bf16 runs a video autoencoder in it many times faster than in fp32.
    """
    import torch

    if torch.cuda.is_available():
        return []
    multiplies_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return ["--cpu", *(["--bf16-vae"] if multiplies_bf16 else [])]
