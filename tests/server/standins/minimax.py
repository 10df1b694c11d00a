"""What stands around MiniMax H3."""

from comfy_api.latest import io

from dit_accel.tests.server.standins.models import CATEGORY, LatentSpace


class H3LatentSpace(LatentSpace):
    latent_channels, space = 24, 16


class H3Vae(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="StandinH3Vae", category=CATEGORY, inputs=[], outputs=[io.Vae.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(H3LatentSpace())


NODES = [H3Vae]
