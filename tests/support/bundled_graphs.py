"""The bundled model in graphs of any shape."""

from dit_accel.accel.cli.demo_graph import MODEL, PROMPT, SHIFT, VAE
from dit_accel.tests.support.graphs import Graph

# (frames, height, width) in pixels: 5 x 7 x 12 video tokens.
SIZE = (17, 112, 192)
BLOCKS = 6


def load(graph: Graph) -> list:
    """The model with the schedule that it was trained with."""
    loaded = graph.add("UNETLoader", unet_name=MODEL, weight_dtype="default")
    return graph.add("ModelSamplingSD3", model=loaded, shift=SHIFT)


def sample(graph: Graph, model: list, prompt: str = "bunny", size=SIZE, **settings) -> list:
    """4 steps without guidance, unless settings change it."""
    conditioning = graph.add("DitAccelLoadConditioning", conditioning_name=PROMPT.format(prompt))
    settings = {"steps": 4, "cfg": 1.0, "positive": conditioning, "negative": conditioning, **settings}
    return graph.ksampler(model, graph.empty_latent(size), **settings)


def decode(graph: Graph, samples: list) -> list:
    return graph.add("VAEDecode", samples=samples, vae=graph.add("VAELoader", vae_name=VAE))
