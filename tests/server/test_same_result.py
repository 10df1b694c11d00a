"""What a sparse run computes, against dense attention: with everything kept, and under the same plans."""

import functools

import numpy as np
import pytest

from dit_accel.accel.attention.account.run_summary import parse_line
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.tests.support import graphs
from dit_accel.tests.support.checkpoints import CALLS
from dit_accel.tests.support.closeness import NETWORK, assert_close, distance
from dit_accel.tests.support.graphs import LARGE, SMALL, Graph

TOKENS = 5 * 16 * 16
STEPS = 3

LATENT = {"hunyuan_video": "EmptyHunyuanLatentVideo", "hunyuan_video_15": "EmptyHunyuanVideo15Latent"}
MODELS = ["wan21_t2v", "hunyuan_video"]


def video(checkpoint, patch=lambda graph, model: model):
    return graphs.video(checkpoint, patch, LARGE, steps=STEPS)


@pytest.fixture(scope="module")
def dense(play):
    """Latents of unpatched runs, by checkpoint."""
    return {checkpoint: play(video(checkpoint)[0]).latent for checkpoint in MODELS}


@pytest.mark.spread(1)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("checkpoint", MODELS)
def test_keeping_everything_equals_dense(play, dense, checkpoint, pattern):
    graph, _ = video(checkpoint, functools.partial(Graph.accelerate, pattern=pattern))
    result = play(graph)

    run = result.run
    forwards = run["forwards"]
    # The positive and the negative prompt in one batch.
    assert forwards == STEPS
    calls = CALLS[checkpoint] * forwards
    assert run["sparse"] == {"torch": calls} and run["expected"] == calls
    assert set(run["dense"]) <= {"cross-attention", "not the video stream"}
    assert run["density"] == pytest.approx(1)
    assert_close(result.latent, dense[checkpoint], units=NETWORK)

    (line,) = filter(None, map(parse_line, result.log.splitlines()))
    assert (line["sparse"], line["backend"], line["density"]) == (calls, "torch", 1.0)


def small(checkpoint, prompt, accelerated, cfg=4.0):
    """2 x 8 x 8 video tokens; prompt: options of the conditioning."""
    graph = Graph()
    model = graph.load(checkpoint)
    if accelerated:
        model = graph.accelerate(model)
    latent = graph.empty_latent(SMALL, LATENT[checkpoint])
    prompts = {name: graph.conditioning(seed, **prompt) for name, seed in (("positive", 1), ("negative", 2))}
    graph.read(graph.ksampler(model, latent, steps=STEPS, cfg=cfg, **prompts), model)
    return graph


@pytest.mark.parametrize(
    "checkpoint, prompt",
    [("hunyuan_video_15", {"vision": 9, "byt5": 7}), ("hunyuan_video_15", {}), ("hunyuan_video", {"tokens": 128})],
)
def test_kinds_of_text_tokens(play, checkpoint, prompt):
    result = play(small(checkpoint, prompt, accelerated=True))
    run = result.run
    assert run["sparse"] == {"torch": CALLS[checkpoint] * run["forwards"]} and run["forwards"] == STEPS
    assert_close(result.latent, play(small(checkpoint, prompt, accelerated=False)).latent, units=NETWORK)


def test_masked_text_stays_dense(play):
    # ComfyUI's HunyuanVideo takes a mask for one prompt at a time only.
    def graph(accelerated):
        return small("hunyuan_video", {"padding": 6}, accelerated, cfg=1.0)

    result = play(graph(accelerated=True))
    assert result.run["sparse"] == {} and result.run["dense"]["mask"] == CALLS["hunyuan_video"] * STEPS
    assert np.array_equal(result.latent, play(graph(accelerated=False)).latent)


@pytest.mark.parametrize("checkpoint", MODELS)
def test_sparse_equals_dense_attention_under_the_same_plans(play, dense, checkpoint):
    def record(graph, model):
        return graph.add("StandinRecorder", model=graph.accelerate(model, top_p=0.5, floor=0.0), name=checkpoint)

    def replay(random_blocks):
        return lambda graph, model: graph.add(
            "StandinReplayer", model=model, name=checkpoint, random_blocks=random_blocks
        )

    graph, samples = video(checkpoint, record)
    graph.add("StandinPlanFacts", name=checkpoint, samples=samples)
    result = play(graph)
    run, plans = result.run, result.outputs["plans"]

    assert run["sparse"] == {"torch": CALLS[checkpoint] * run["forwards"]} and run["forwards"] > 0
    assert len(plans) == run["sparse"]["torch"]
    assert 0.05 < run["density"] < 0.9
    assert run["density"] == pytest.approx(np.mean([plan["density"] for plan in plans]), rel=1e-3)
    for plan in plans:
        # Block 0 holds the tokens that are not video.
        for sizes, clusters in ((plan["query_sizes"][1:], 8), (plan["key_sizes"][1:], 16)):
            assert sum(sizes) == TOKENS >= 1024
            assert len(sizes) >= clusters and max(sizes) > min(sizes)

    replayed = play(video(checkpoint, replay(False))[0]).latent
    at_random = play(video(checkpoint, replay(True))[0]).latent
    assert_close(result.latent, replayed, units=NETWORK)
    assert distance(result.latent, dense[checkpoint]) > 1e-3

    def error(latent):
        return np.linalg.norm(latent - dense[checkpoint])

    assert error(result.latent) < 0.95 * error(at_random)
