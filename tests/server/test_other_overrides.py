"""Other packs' attention overrides on the same model."""

import numpy as np
import pytest

from dit_accel.tests.support.checkpoints import CALLS
from dit_accel.tests.support.graphs import video

MODEL = "wan21_t2v"
OTHER = "Model Sparse Attention (BlockSparseAttention)"


def order(graph, model, ours_first, other, **budget):
    """The model through our node and then `other`, or the other way round."""
    steps = [lambda m: graph.accelerate(m, top_p=0.5, floor=0.0, **budget), other]
    for step in steps if ours_first else reversed(steps):
        model = step(model)
    return model


@pytest.mark.parametrize("ours_first", [True, False])
def test_another_sparse_attention_owns_the_calls(play, ours_first):
    def other(graph):
        return lambda model: graph.add("StandinSparseOverride", model=model, name="sparse")

    steps = 10
    graph, samples = video(MODEL, lambda g, m: order(g, m, ours_first, other(g)), steps=steps)
    graph.add("StandinCounts", name="sparse", samples=samples)
    result = play(graph)
    (counts,) = result.outputs["counts"]

    assert not result.run["sparse"]
    assert any(OTHER in reason for reason in result.run["dense"])
    assert OTHER in result.log
    assert counts["steps"] >= steps
    assert counts["deepest"] == counts["shallowest"] == 1
    # Its function saw every self- and cross-attention call.
    assert counts["calls"] == 2 * CALLS[MODEL] * result.run["forwards"]

    alone, _ = video(MODEL, lambda g, m: other(g)(m), steps=steps)
    assert np.array_equal(result.latent, play(alone).latent)


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("dense_blocks, dense_self_calls", [("", 0), ("0", 1)])
def test_a_plain_override_serves_the_dense_calls(play, ours_first, dense_blocks, dense_self_calls):
    def patch(graph, model):
        def plain(model):
            return graph.add("StandinPlainOverride", model=model, name="plain")

        return order(graph, model, ours_first, plain, dense_blocks=dense_blocks)

    graph, samples = video(MODEL, patch)
    graph.add("StandinCounts", name="plain", samples=samples)
    result = play(graph)
    (counts,) = result.outputs["counts"]
    forwards = result.run["forwards"]
    assert result.run["sparse"] == {"torch": (CALLS[MODEL] - dense_self_calls) * forwards}
    assert counts.get("self", 0) == dense_self_calls * forwards
    assert counts["cross"] == CALLS[MODEL] * forwards
