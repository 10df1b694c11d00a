"""The bundled model in a server that has nothing but the pack: the demo's graph, as a person would run it."""

import numpy as np
import pytest

from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.cli import demo_graph
from dit_accel.accel.cli.demo_graph import prompts
from dit_accel.tests.support.graphs import BUDGET, Graph, nonce

SMALL = {"width": 192, "height": 112, "frames": 17, "steps": 4}
BLOCKS = 6


def run(play, sparse=None, **changes):
    nodes = demo_graph.graph("bunny", **{**SMALL, **changes}, prefix="demo", sparse=sparse)
    graph = Graph(nodes)
    # Otherwise the second run would be the first one's cached result.
    nodes["sample"]["inputs"]["latent_image"] = graph.add("StandinNonce", samples=["empty", 0], nonce=nonce())
    graph.read(["sample", 0], nodes["sample"]["inputs"]["model"])
    return play(graph)


def test_the_loaders_list_the_files(server):
    def options(node, name):
        return server.object_info(node)["input"]["required"][name]

    assert demo_graph.MODEL in options("UNETLoader", "unet_name")[0]
    assert demo_graph.VAE in options("VAELoader", "vae_name")[0]
    listed = options("DitAccelLoadConditioning", "conditioning_name")[1]["options"]
    assert {demo_graph.PROMPT.format(name) for name in prompts()} <= set(listed)
    assert {"bunny", "empty"} < set(prompts())


def test_the_same_seed_gives_the_same_latent_twice(play):
    first, second, other = run(play), run(play), run(play, seed=8)
    assert first.latent.shape == (1, 16, 5, 14, 24)
    assert np.array_equal(first.latent, second.latent)
    assert not np.array_equal(first.latent, other.latent)
    assert len(first.outputs["images"]) == SMALL["frames"]


@pytest.mark.thorough
def test_every_pattern_runs_and_repeats(play):
    dense = run(play).latent
    for pattern in PATTERNS:
        sparse = {"budget": {**BUDGET, "top_p": 0.8, "floor": 0.0}, "pattern": pattern, "fallback": "reference"}
        first, second = run(play, sparse), run(play, sparse)
        assert first.run["sparse"] == {"torch": BLOCKS * SMALL["steps"]}
        assert set(first.run["dense"]) == {"cross-attention"}
        assert 0.05 < first.run["density"] < 0.95
        assert np.array_equal(first.latent, second.latent)
        error = np.linalg.norm(first.latent - dense) / np.linalg.norm(dense)
        assert 1e-4 < error < 2
