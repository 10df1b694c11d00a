"""Models from files, inside this process."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def load_diffusion_model(path: Path):
    """The ModelPatcher of a diffusion model's file. Raises RuntimeError when ComfyUI does not know the model."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(path))


class VideoEncoder:
    """A video autoencoder from its file, as ComfyUI loads it."""

    def __init__(self, path: Path) -> None:
        import comfy.sd
        import comfy.utils

        self._vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))

    @property
    def pixels(self) -> int:
        """Side in pixels of one latent pixel."""
        return self._vae.spacial_compression_encode()

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames [T, 3, H, W] in 0..1 as a latent [1, C, t, h, w]."""
        return self._vae.encode(frames.movedim(1, -1))
