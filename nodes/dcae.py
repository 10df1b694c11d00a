"""Nodes: DC-AE autoencoders."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..accel.dcae.config import CONFIGS

TILE = io.Int.Input(
    "tile_size",
    default=0,
    min=0,
    max=16384,
    step=32,
    tooltip="Height in pixels of the strips that are worked on at once. The result does not depend on it, only memory "
    "does. 0: as much as free memory holds.",
)


class DitAccelLoadDCAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelLoadDCAE",
            display_name="Load DC-AE (DiT Accel)",
            category="DiT Accel/autoencoders",
            description=(
                "Loads a deep compression autoencoder (DC-AE: SANA's, DC-Gen's, those for ImageNet) from a file in "
                "MIT's or diffusers' format. VAE Decode, VAE Encode and their tiled forms take it."
            ),
            inputs=[
                io.Combo.Input(
                    "vae_name", options=folder_paths.get_filename_list("vae"), tooltip="A file in models/vae."
                ),
                io.Combo.Input(
                    "variant",
                    options=["auto", *CONFIGS],
                    default="auto",
                    tooltip="Which autoencoder it is. auto reads it from the file; `in` and `mix` look alike, there "
                    "the name must say it, or you.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "bf16", "fp32"],
                    default="auto",
                    tooltip="Precision. auto: bf16 where the device has it. Attention sums are fp32 always; fp16 "
                    "may overflow and is not offered.",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="For all nodes that take a VAE.")],
            search_aliases=["SANA VAE", "deep compression autoencoder", "DC-AE", "AutoencoderDC"],
        )

    @classmethod
    def execute(cls, vae_name, variant, dtype) -> io.NodeOutput:
        from ..accel.comfy.dcae import autoencoder

        path = Path(folder_paths.get_full_path_or_raise("vae", vae_name))
        return io.NodeOutput(autoencoder.load(path, variant, dtype))


class DitAccelDCAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelDCAEDecode",
            display_name="DC-AE Decode (DiT Accel)",
            category="DiT Accel/autoencoders",
            description="Decodes a latent with a DC-AE, in strips of a height that you choose.",
            inputs=[
                io.Latent.Input("samples", tooltip="A latent of the autoencoder's number of channels."),
                io.Vae.Input("vae", tooltip="From Load DC-AE (DiT Accel)."),
                TILE,
            ],
            outputs=[io.Image.Output(tooltip="The picture; the same for every tile_size.")],
            search_aliases=["decode SANA", "tiled decode"],
        )

    @classmethod
    def execute(cls, samples, vae, tile_size) -> io.NodeOutput:
        from ..accel.comfy.dcae import autoencoder

        vae = autoencoder.need_autoencoder(vae)
        latents = autoencoder.need_latents(vae.config, samples)
        with vae.first_stage_model.strips(_rows(vae, tile_size)):
            return io.NodeOutput(vae.decode(latents))


class DitAccelDCAEEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DitAccelDCAEEncode",
            display_name="DC-AE Encode (DiT Accel)",
            category="DiT Accel/autoencoders",
            description="Encodes pictures with a DC-AE, in strips of a height that you choose.",
            inputs=[
                io.Image.Input("pixels", tooltip="Cut in the middle to whole latent pixels."),
                io.Vae.Input("vae", tooltip="From Load DC-AE (DiT Accel)."),
                TILE,
            ],
            outputs=[io.Latent.Output(tooltip="The latent, not scaled; the same for every tile_size.")],
            search_aliases=["encode SANA", "tiled encode"],
        )

    @classmethod
    def execute(cls, pixels, vae, tile_size) -> io.NodeOutput:
        from ..accel.comfy.dcae import autoencoder

        vae = autoencoder.need_autoencoder(vae)
        with vae.first_stage_model.strips(_rows(vae, tile_size)):
            return io.NodeOutput({"samples": vae.encode(autoencoder.need_pictures(pixels))})


def _rows(vae, tile_size: int) -> int | None:
    """Latent rows of a strip; None for 0, as many as fit."""
    return max(1, tile_size // vae.config.factor) if tile_size else None
