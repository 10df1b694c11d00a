"""Text encoder, VAE and conditioning without weights: fixed random numbers of the right shape."""

import hashlib

import torch
from comfy_api.latest import io

CATEGORY = "stand-ins"


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Conditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinConditioning",
            category=CATEGORY,
            inputs=[
                io.Int.Input("seed", default=0),
                io.Int.Input("tokens", default=24, min=1),
                io.Int.Input("width", default=64),
                io.Int.Input("padding", default=0, tooltip="That many tokens at the end are masked out."),
                io.Int.Input("vision", default=0, tooltip="Image tokens of HunyuanVideo 1.5."),
                io.Int.Input("byt5", default=0, tooltip="Glyph tokens of HunyuanVideo 1.5."),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, seed, tokens, width, padding, vision, byt5):
        extra = {"pooled_output": random(seed + 1, 1, 768)}
        if padding:
            extra["attention_mask"] = (torch.arange(tokens) < tokens - padding).long()[None]
        if byt5:
            extra["conditioning_byt5small"] = random(seed + 2, 1, byt5, 1472)
        if vision:
            import comfy.clip_vision

            extra["clip_vision_output"] = comfy.clip_vision.Output()
            extra["clip_vision_output"].last_hidden_state = random(seed + 3, 1, vision, 1152)
        return io.NodeOutput([[random(seed, 1, tokens, width), extra]])


class TextEncoder:
    """What CLIPTextEncode asks of a CLIP: another text gives another embedding."""

    width = 64

    def tokenize(self, text, **kwargs):
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def encode_from_tokens_scheduled(self, tokens, **kwargs):
        return [[random(tokens, 1, 24, self.width), {"pooled_output": random(tokens + 1, 1, 768)}]]


class Clip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="StandinClip", category=CATEGORY, inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(TextEncoder())


class LatentSpace:
    """What nodes ask of a VAE; in numbers, Wan 2.1's: a latent is space x space pixels and time frames."""

    latent_channels, space, time = 16, 8, 4

    def spacial_compression_encode(self):
        return self.space

    def encode(self, images):
        frames, height, width = images.shape[:3]
        size = (frames - 1) // self.time + 1, height // self.space, width // self.space
        return random(11, 1, self.latent_channels, *size)

    def decode(self, latents):
        batch, _, frames, height, width = latents.shape
        size = (frames - 1) * self.time + 1, height * self.space, width * self.space
        return random(12, batch, *size, 3).sigmoid()


class Vae(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="StandinVae", category=CATEGORY, inputs=[], outputs=[io.Vae.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(LatentSpace())


class Lora(io.ComfyNode):
    """A LoRA loader that changes nothing."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinLora",
            category=CATEGORY,
            inputs=[io.Model.Input("model"), io.Clip.Input("clip", optional=True)],
            outputs=[io.Model.Output(), io.Clip.Output()],
        )

    @classmethod
    def execute(cls, model, clip=None):
        return io.NodeOutput(model.clone(), clip)


class Nonce(io.ComfyNode):
    """Passes a latent on; another nonce makes what follows run again instead of coming from the cache."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinNonce",
            category=CATEGORY,
            inputs=[io.Latent.Input("samples"), io.String.Input("nonce")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples, nonce):
        return io.NodeOutput(samples)


class After(io.ComfyNode):
    """Passes a latent on once another one is there: nodes of one graph run in that order."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StandinAfter",
            category=CATEGORY,
            inputs=[io.Latent.Input("samples"), io.Latent.Input("after")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples, after):
        return io.NodeOutput(samples)


NODES = [Conditioning, Clip, Vae, Lora, Nonce, After]
