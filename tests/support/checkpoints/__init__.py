"""Tiny random video checkpoints that ComfyUI's own loader recognises.

`python -m dit_accel.tests.support.checkpoints COMFYUI FOLDER [NAME ...]` writes them as safetensors.
"""

import os
import subprocess
import sys
from pathlib import Path

from dit_accel.tests.support.checkpoints import cogvideo, cosmos, genmo, hunyuan, kandinsky, lightricks, minimax, wan
from dit_accel.tests.support.checkpoints.checkpoint import HEADS, TEXT_WIDTH, WIDTH, Checkpoint

__all__ = ["CALLS", "CHECKPOINTS", "HEADS", "TEXT_WIDTH", "WIDTH", "Checkpoint", "build"]

CHECKPOINTS: dict[str, Checkpoint] = {
    **wan.CHECKPOINTS,
    **hunyuan.CHECKPOINTS,
    **kandinsky.CHECKPOINTS,
    **cogvideo.CHECKPOINTS,
    **genmo.CHECKPOINTS,
    **cosmos.CHECKPOINTS,
    **lightricks.CHECKPOINTS,
    **minimax.CHECKPOINTS,
}
# Video self-attention calls of one forward.
CALLS = {name: checkpoint.calls for name, checkpoint in CHECKPOINTS.items()}


def build(comfyui: Path, folder: Path, names=tuple(CHECKPOINTS)) -> None:
    """Writes `<name>.safetensors` for every name into folder, in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", __name__, str(comfyui), str(folder), *names],
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
