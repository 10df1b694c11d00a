"""What only some models need: encoders of their own, a tracker, an adapter, a loader."""

import json
from unittest import mock

import comfy.clip_vision
import comfy.model_detection
import comfy.model_patcher
import comfy.ops
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io
from comfy_extras.nodes_model_patch import MultiTalkModelPatch
from comfy_extras.nodes_scail import SAM3TrackData

from dit_accel.tests.server.standins.models import CATEGORY, LatentSpace, TextEncoder, random


class WideTextEncoder(TextEncoder):
    """Kandinsky 5's: ComfyUI takes its width for granted."""

    width = 3584


class WideClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="StandinWideClip", category=CATEGORY, inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(WideTextEncoder())


class Hunyuan15LatentSpace(LatentSpace):
    latent_channels, space = 32, 16


class Hunyuan15Vae(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="StandinHunyuan15Vae", category=CATEGORY, inputs=[], outputs=[io.Vae.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(Hunyuan15LatentSpace())


class ConfiguredModel(io.ComfyNode):
    """UNETLoader for a file that says its model's settings: of some models ComfyUI knows the published size alone."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinConfiguredModel",
            category=CATEGORY,
            inputs=[io.String.Input("unet_name"), io.String.Input("weight_dtype")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, unet_name, weight_dtype):
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)

        def stated(tensors, prefix, metadata):
            return json.loads(metadata["config"])["transformer"]

        with mock.patch.object(comfy.model_detection, "detect_unet_config", stated):
            return io.NodeOutput(comfy.sd.load_diffusion_model(path))


class VisionEncoder:
    """What CLIPVisionEncode asks of a CLIP vision model: CLIP's, or SigLIP's where the file is named so."""

    def __init__(self, name):
        self.tokens, self.width = (729, 1152) if name.startswith("sigclip") else (257, 1280)

    def encode_image(self, image, crop):
        output = comfy.clip_vision.Output()
        output.last_hidden_state = output.penultimate_hidden_states = random(21, 1, self.tokens, self.width)
        return output


class Vision(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinVision",
            category=CATEGORY,
            inputs=[io.String.Input("clip_name")],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, clip_name):
        return io.NodeOutput(VisionEncoder(clip_name))


# Start of the file's name -> hidden states, their width.
AUDIO_ENCODERS = {"whisper_large": (33, 1280), "wav2vec2_large": (25, 1024), "wav2vec2-chinese-base": (13, 768)}


class AudioFeatures:
    """What AudioEncoderEncode asks of an encoder: every layer's features, 50 a second of 16 kHz audio."""

    def __init__(self, name):
        (self.layers,) = (size for start, size in AUDIO_ENCODERS.items() if name.startswith(start))

    def encode_audio(self, waveform, sample_rate):
        samples = waveform.shape[2] * 16000 // sample_rate
        count, width = self.layers
        layers = [random(31 + layer, 1, samples // 320, width) for layer in range(count)]
        return {"encoded_audio": layers[-1], "encoded_audio_all_layers": layers, "audio_samples": samples}


class AudioEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinAudioEncoder",
            category=CATEGORY,
            inputs=[io.String.Input("audio_encoder_name")],
            outputs=[io.AudioEncoder.Output()],
        )

    @classmethod
    def execute(cls, audio_encoder_name):
        return io.NodeOutput(AudioFeatures(audio_encoder_name))


class Track(io.ComfyNode):
    """A tracker that finds one object: the left half of each frame."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinTrack",
            category=CATEGORY,
            inputs=[io.Image.Input("images")],
            outputs=[SAM3TrackData.Output()],
        )

    @classmethod
    def execute(cls, images):
        frames, height, width = images.shape[:3]
        # A byte holds eight pixels of a row.
        packed = torch.zeros(frames, 1, 16, 2, dtype=torch.uint8)
        packed[..., 0] = 255
        return io.NodeOutput(
            {"packed_masks": packed, "n_frames": frames, "scores": [1.0], "orig_size": (height, width)}
        )


class TalkPatch(io.ComfyNode):
    """InfiniteTalk's adapter for a model of two blocks and width 640."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="StandinTalkPatch", category=CATEGORY, inputs=[], outputs=[io.ModelPatch.Output()])

    @classmethod
    def execute(cls):
        cpu = torch.device("cpu")
        adapter = MultiTalkModelPatch(
            intermediate_dim=16, in_dim=640, out_dim=16, num_layers=2, device=cpu, operations=comfy.ops.manual_cast
        )
        for number, parameter in enumerate(adapter.parameters()):
            parameter.data = random(number, *parameter.shape) * 0.02
        return io.NodeOutput(comfy.model_patcher.CoreModelPatcher(adapter, load_device=cpu, offload_device=cpu))


NODES = [WideClip, Hunyuan15Vae, ConfiguredModel, Vision, AudioEncoder, Track, TalkPatch]
