"""A run that ends badly leaves nothing behind: not in memory, and not in the next run's result."""

import numpy as np
import pytest

from dit_accel.accel.headless.server import GraphFailed
from dit_accel.tests.support.checkpoints import CALLS
from dit_accel.tests.support.graphs import SMALL, Graph, nonce, video

MODEL = "wan21_t2v"
# In the second forward, so that there is warm-start state to lose.
CALL = CALLS[MODEL] + 1


def disturbed(kind):
    def patch(graph, model):
        model = graph.accelerate(model, top_p=0.5, floor=0.0)
        return graph.add("StandinDisturbance", model=model, kind=kind, call=CALL)

    return video(MODEL, patch)[0]


def state(play):
    graph = Graph()
    graph.add("StandinState", nonce=nonce())
    (alive,) = play(graph).outputs["state"]
    return alive


@pytest.fixture(scope="module")
def undisturbed(play):
    result = play(disturbed("none"))
    assert result.run["sparse"]["torch"] == CALLS[MODEL] * result.run["forwards"]
    return result


def test_two_runs_are_equal_and_leave_no_state(play, undisturbed):
    assert np.array_equal(play(disturbed("none")).latent, undisturbed.latent)
    assert_clean(play)


def test_exception(play, undisturbed):
    with pytest.raises(GraphFailed, match="failed on purpose") as failure:
        play(disturbed("raise"))
    assert failure.value.node_type == "KSampler"
    assert_clean(play)
    assert np.array_equal(play(disturbed("none")).latent, undisturbed.latent)


def test_interrupt(play, undisturbed):
    server = play.server
    prompt = play.until_it_waits(disturbed("wait"))
    server.interrupt()
    with pytest.raises(GraphFailed, match="interrupted"):
        server.wait(prompt, timeout=30)
    assert_clean(play)
    assert np.array_equal(play(disturbed("none")).latent, undisturbed.latent)


def test_out_of_memory(play, undisturbed):
    """From the call that ran out of memory on, that forward is dense; then the run goes on."""
    run = play(disturbed("out_of_memory")).run
    lost = run["dense"]["out of memory"]
    assert lost in (1, 2)  # of the two calls of a forward
    assert run["sparse"]["torch"] == undisturbed.run["sparse"]["torch"] - lost > 0
    assert_clean(play)
    assert np.array_equal(play(disturbed("none")).latent, undisturbed.latent)


@pytest.mark.parametrize("kind", ["none", "raise"])
def test_a_guider_outlives_its_run(play, kind):
    """ComfyUI keeps the guider of a graph in its cache."""
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL), top_p=0.5, floor=0.0)
    model = graph.add("StandinDisturbance", model=model, kind=kind, call=CALL)
    graph.read(graph.custom_sampler(model, graph.empty_latent(SMALL), "CFGGuider"), model)
    if kind == "none":
        assert play(graph).run["sparse"]
    else:
        with pytest.raises(GraphFailed, match="failed on purpose"):
            play(graph)
    assert_clean(play)


def assert_clean(play):
    assert state(play) == {"runs": 0, "caches": 0, "plans": 0, "bytes": 0}


def test_two_budgets_in_one_graph(play):
    """Two clones of one model: each run is what it is alone."""
    budgets = [{"top_p": 0.4, "floor": 0.0}, {"top_p": 0.8, "floor": 0.0}]
    alone = [play(video(MODEL, lambda g, m, b=budget: g.accelerate(m, **b))[0]) for budget in budgets]
    assert alone[0].run["density"] < alone[1].run["density"]

    graph = Graph()
    loaded = graph.load(MODEL)
    for budget in budgets:
        model = graph.accelerate(loaded, **budget)
        graph.read(graph.ksampler(model, graph.empty_latent(SMALL)), model)
    together = play(graph)
    for result, latent in zip(alone, together.latents, strict=True):
        assert np.array_equal(result.latent, latent)
    densities = [run["density"] for run in together.runs]
    assert {result.run["density"] for result in alone} <= set(densities)
