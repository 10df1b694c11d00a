"""DiT Accel: sparse attention for video diffusion transformers in ComfyUI."""

WEB_DIRECTORY = "./web/js"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point. Nothing is imported before ComfyUI asks for the nodes."""
    from .nodes.extension import DiTAccelExtension

    return DiTAccelExtension()
