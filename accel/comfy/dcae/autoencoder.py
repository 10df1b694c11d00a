"""DC-AE as a ComfyUI VAE that every stock node takes: exact at any size, in as much memory as there is."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...dcae.checkpoint import read
from ...dcae.config import Config
from ...dcae.keys import MIT, from_ours
from ...dcae.network import DCAE
from ...dcae.peak_memory import peak_bytes, rows_for
from ..inputs import latent_of

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# What a decode may ask ComfyUI to clear for it, of all memory; strips make do with less.
SHARE = 0.25


class InStrips(torch.nn.Module):
    """What ComfyUI calls the first stage model: an autoencoder that works in strips of `rows` latent rows, or of as
    many as free memory holds."""

    def __init__(self, network: DCAE, config: Config):
        super().__init__()
        self.network, self.config, self.rows = network, config, None

    def decode(self, latent: Tensor) -> Tensor:
        """[B, C, h, w] as pixels [B, 3, h * f, w * f] around -1..1. Raises ValueError at another number of channels."""
        need_channels(self.config, latent.shape[1])
        return self._run("decode", latent, latent.shape[2], latent.shape[3])

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, h * f, w * f] in -1..1 as a latent [B, C, h, w]. Raises ValueError at less than a latent
        pixel."""
        factor = self.config.factor
        height, width = (size // factor for size in pixels.shape[2:])
        if not height or not width:
            raise ValueError(
                f"pixels: expected at least {factor} x {factor} for DC-AE {self.config.name}, found less in a picture"
            )
        return self._run("encode", pixels, height, width)

    def decode_tiled(self, latent: Tensor, tile_x=None, tile_y=None, overlap=None) -> Tensor:
        """The same picture as decode's. tile_y: rows of a strip; strips are as wide as the picture and need no
        overlap."""
        with self.strips(tile_y):
            return self.decode(latent)

    @contextlib.contextmanager
    def strips(self, rows: int | None) -> Iterator[None]:
        """In strips of `rows` latent rows while the block lasts; None: as many as free memory holds."""
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before

    def _run(self, part: str, x: Tensor, height: int, width: int) -> Tensor:
        rows = self.rows
        if rows is None:
            rows = rows_for(self.config, part, height, width, x.dtype, management.get_free_memory(x.device) / len(x))
        bar = None

        def progress(done: int, total: int) -> None:
            nonlocal bar
            management.throw_exception_if_processing_interrupted()
            bar = bar or comfy.utils.ProgressBar(total)
            bar.update_absolute(done, total)

        return getattr(self.network, part)(x, rows=rows, progress=progress)


class Autoencoder(comfy.sd.VAE):
    """A comfy.sd.VAE around a DC-AE."""

    def __init__(self, network: DCAE, config: Config, dtype: torch.dtype | None):
        # Core's simplest VAE brings every attribute that core has come to expect.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)})
        self.config = config
        self.first_stage_model = InStrips(network, config).train(False).requires_grad_(False)
        self.latent_channels, self.latent_dim, self.output_channels = config.latent_channels, 2, 3
        self.downscale_ratio = self.upscale_ratio = config.factor
        self.working_dtypes = list(DTYPES.values())
        self.handles_tiling = self.crop_input = True
        self.process_input = lambda image: image * 2.0 - 1.0
        self.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
        self.memory_used_decode = lambda shape, dtype: self._memory("decode", shape[2], shape[3], dtype)
        self.memory_used_encode = lambda shape, dtype: self._memory(
            "encode", shape[2] // config.factor, shape[3] // config.factor, dtype
        )
        self.vae_dtype = dtype or self._chosen_dtype()
        self.first_stage_model.to(self.vae_dtype)
        management.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=management.vae_offload_device()
        )

    def get_sd(self) -> dict[str, Tensor]:
        """The tensors as saving nodes write them, under the names of MIT's code: diffusers converts those."""
        return from_ours(self.first_stage_model.network.state_dict(), self.config, MIT)

    def encode_tiled(self, pixel_samples: Tensor, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """As encode, in strips of tile_y pixels: core would average tilings of images, whose tones differ."""
        with self.first_stage_model.strips(None if tile_y is None else max(1, tile_y // self.config.factor)):
            return self.encode(pixel_samples)

    def _memory(self, part: str, height: int, width: int, dtype: torch.dtype) -> int:
        """Bytes to have free for one picture, at most: all at once, or a share of the device's memory that holds at
        least the smallest strips."""
        height, width = max(1, height), max(1, width)
        whole, least = (peak_bytes(self.config, part, height, width, rows, dtype) for rows in (None, 1))
        return int(min(whole, max(least, SHARE * management.get_total_memory(self.device))))

    def _chosen_dtype(self) -> torch.dtype:
        chosen = management.vae_dtype(self.device, self.working_dtypes)
        if chosen in self.working_dtypes:
            return chosen
        logging.warning("DiT Accel: DC-AE may overflow in %s, it runs in float32", str(chosen).removeprefix("torch."))
        return torch.float32


def load(path: Path, variant: str = "auto", dtype: str = "auto") -> Autoencoder:
    """The VAE of a DC-AE file. variant: a name in config.CONFIGS, or `auto` to tell it from the file; dtype: `bf16`,
    `fp32` or `auto`. Raises ValueError as reading.read does."""
    config, tensors = read(path, variant)
    network = DCAE(config, comfy.ops.manual_cast)
    network.load_state_dict(tensors)
    vae = Autoencoder(network, config, DTYPES.get(dtype))
    vae.patcher.cached_patcher_init = (_load_patcher, (path, variant, dtype))
    logging.info("DiT Accel: %s: DC-AE %s, %s", path.name, config.name, str(vae.vae_dtype).removeprefix("torch."))
    return vae


def need_autoencoder(vae) -> Autoencoder:
    """Raises ValueError unless the VAE is a DC-AE."""
    if not isinstance(vae, Autoencoder):
        actual = type(getattr(vae, "first_stage_model", vae)).__name__
        raise ValueError(f"vae: expected a DC-AE from Load DC-AE (DiT Accel), found {actual}")
    return vae


def need_channels(config: Config, channels: int) -> None:
    """Raises ValueError unless a latent has the autoencoder's number of channels."""
    if channels != config.latent_channels:
        raise ValueError(
            f"samples: expected a latent of {config.latent_channels} channels for DC-AE {config.name}, found {channels}"
        )


def need_latents(config: Config, samples: Mapping) -> Tensor:
    """The latents [B, C, h, w] of a LATENT: of nested ones the first stream, as ComfyUI's own decoding takes it; frames
    [B, C, T, h, w] are a batch. Raises ValueError, naming `samples`, where they do not suit the autoencoder."""
    latent = latent_of(samples)
    if latent.is_nested:
        latent = latent.unbind()[0]
    if latent.ndim == 5:
        latent = latent.movedim(2, 1).flatten(0, 1)
    if latent.ndim != 4 or not latent.numel():
        raise ValueError(f"samples: expected latents [B, C, h, w] of pictures, found {list(latent.shape)}")
    need_channels(config, latent.shape[1])
    return latent


def need_pictures(pixels: Tensor) -> Tensor:
    """pixels, an IMAGE of at least one picture. Raises ValueError otherwise."""
    if pixels.ndim != 4 or not len(pixels) or pixels.shape[3] not in (3, 4) or not pixels.is_floating_point():
        dtype = str(pixels.dtype).removeprefix("torch.")
        raise ValueError(f"pixels: expected pictures [B, H, W, 3] in 0..1, found {list(pixels.shape)} of {dtype}")
    return pixels


def _load_patcher(path: Path, variant: str, dtype: str, disable_dynamic: bool = False):
    return load(path, variant, dtype).patcher
