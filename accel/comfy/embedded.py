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
