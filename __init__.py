"""DiT Accel: sparse attention for video diffusion transformers in ComfyUI."""

import sys

WEB_DIRECTORY = "./web/js"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point. Nothing is imported before ComfyUI asks for the nodes."""
    from .accel.comfy.core_version import need_core

    # First: what an older ComfyUI lacks would fail below, in words that say nothing of versions.
    need_core()
    from .nodes.extension import DiTAccelExtension

    return DiTAccelExtension()


def __getattr__(name: str):
    """A ComfyUI that knows no entry points yet asks for this list instead: its log must say why there is none."""
    if name == "NODE_CLASS_MAPPINGS" and "comfy_api.latest" not in sys.modules:
        from .accel.comfy.core_version import need_core

        need_core()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
