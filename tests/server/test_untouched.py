"""Without sparse calls the latents are, bit for bit, those of a ComfyUI that never saw the pack."""

import numpy as np
import pytest

from dit_accel.tests.support.graphs import Graph, video

MODELS = ["wan21_t2v", "hunyuan_video"]


@pytest.fixture(scope="module")
def without_pack(play_without_pack):
    return {checkpoint: play_without_pack(video(checkpoint)[0]).latent for checkpoint in MODELS}


@pytest.mark.parametrize("checkpoint", MODELS)
def test_installed_and_unused(play, without_pack, checkpoint):
    assert np.array_equal(play(video(checkpoint)[0]).latent, without_pack[checkpoint])


@pytest.mark.parametrize("checkpoint", MODELS)
def test_bypassed_after_a_sparse_run(play, without_pack, checkpoint):
    """The frontend leaves a bypassed node out of the graph; the loaded model is the one that ran sparse."""
    sparse = play(video(checkpoint, lambda graph, model: graph.accelerate(model, top_p=0.3, floor=0.0))[0])
    assert sparse.run["sparse"]
    assert not np.array_equal(sparse.latent, without_pack[checkpoint])
    assert np.array_equal(play(video(checkpoint)[0]).latent, without_pack[checkpoint])


@pytest.mark.parametrize("checkpoint", MODELS)
@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"min_tokens": 129}, "fewer than min_tokens"),
        ({"dense_first": 1.0, "dense_last": 0.0}, "outside the budget's window"),
        ({"dense_blocks": "0-47"}, "dense_blocks"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_all_dense(play, without_pack, checkpoint, settings, reason):
    result = play(video(checkpoint, lambda graph, model: Graph.accelerate(graph, model, **settings))[0])
    assert not result.run["sparse"]
    assert any(name.startswith(reason) for name in result.run["dense"])
    assert reason in result.log
    assert np.array_equal(result.latent, without_pack[checkpoint])
