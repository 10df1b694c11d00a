"""What stands around LTX-Video and LTX-2."""

import comfy.model_patcher
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io

from dit_accel.tests.server.standins.models import CATEGORY, LatentSpace, TextEncoder


class PaddedTextEncoder(TextEncoder):
    """LTX-Video's: the last third is padding, and a mask says so."""

    def encode_from_tokens_scheduled(self, tokens, **kwargs):
        [[embedding, extra]] = super().encode_from_tokens_scheduled(tokens, **kwargs)
        length = embedding.shape[1]
        mask = (torch.arange(length) < length * 2 // 3).long()[None]
        return [[embedding, {**extra, "attention_mask": mask}]]


class LtxLatentSpace(LatentSpace):
    """The video's; its channels are normalised already, so the upsampler's way out and back changes nothing."""

    latent_channels, space, time = 128, 32, 8
    downscale_index_formula = (8, 32, 32)

    @property
    def first_stage_model(self):
        return self

    @property
    def per_channel_statistics(self):
        return self

    def normalize(self, latent):
        return latent

    un_normalize = normalize


class AudioLatentSpace:
    """What LTX-2's empty audio latent asks of its VAE: 25 latents a second."""

    latent_channels = 8
    latent_frequency_bins = 16

    @property
    def first_stage_model(self):
        return self

    def num_of_latents_from_frames(self, frames_number, frame_rate):
        return round(frames_number / frame_rate * 25)


class PaddedClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="StandinPaddedClip", category=CATEGORY, inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(PaddedTextEncoder())


class LtxCheckpoint(io.ComfyNode):
    """A model file read by ComfyUI, with a VAE beside it and no text encoder."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinLtxCheckpoint",
            category=CATEGORY,
            inputs=[io.String.Input("ckpt_name")],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, ckpt_name):
        path = folder_paths.get_full_path_or_raise("diffusion_models", ckpt_name)
        return io.NodeOutput(comfy.sd.load_diffusion_model(path), None, LtxLatentSpace())


class AudioVae(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="StandinAudioVae", category=CATEGORY, inputs=[], outputs=[io.Vae.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(AudioLatentSpace())


class LatentUpscaler(io.ComfyNode):
    """An upscaler to twice the height and width."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinLatentUpscaler",
            category=CATEGORY,
            inputs=[],
            outputs=[io.LatentUpscaleModel.Output()],
        )

    @classmethod
    def execute(cls):
        cpu = torch.device("cpu")
        model = torch.nn.Upsample(scale_factor=(1, 2, 2))
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu))


NODES = [PaddedClip, LtxCheckpoint, AudioVae, LatentUpscaler]
