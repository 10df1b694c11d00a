"""The guard on a real server: faults are planted in the pack, found, mended and reported; without it they pass."""

import numpy as np
import pytest

from dit_accel.tests.support import bundled_graphs as bundled
from dit_accel.tests.support.graphs import Graph

SPARSE = {"top_p": 0.7, "floor": 0.0}
STEPS = 5


def run(play, guard: str, budget: dict = SPARSE, *, recorded: bool = False, **fault):
    """The run of the bundled model, with a fault if there is one, and its part of the report's data."""
    graph = Graph()
    model = graph.accelerate(bundled.load(graph), guard=guard, **budget)
    if recorded:
        model = graph.record(model)
    if fault:
        model = graph.add("StandinFault", model=model, **fault)
    samples = bundled.sample(graph, model, steps=STEPS)
    graph.add("DitAccelReport", model=model, samples=samples)
    graph.read(samples, model)
    result = play(graph)
    (payload,) = result.outputs["dit_accel_report"]
    return result, payload["runs"][0], payload["text"]


def test_a_forgetful_planner_is_found_and_mended(play):
    """Plans that lack what matters most keep too little mass: their layers are given more."""
    _, watched, text = run(play, "on", kind="forgets", call=0)
    _, alone, silent = run(play, "off", kind="forgets", call=0)
    said = watched["guard"]
    assert any("promised; top_p raised to 0.850" in sentence for sentence in said)
    assert f"guard: {said[0]}" in text
    assert "guard: " not in silent and alone["guard"] == []
    raised = sorted({int(sentence.split(",")[0].removeprefix("layer ")) for sentence in said})
    assert raised
    more = np.array(watched["density"])[raised, 1:] - np.array(alone["density"])[raised, 1:]
    assert more.mean() > 0.02
    # Three times too little, and a layer is dense.
    given_up = [int(s.split(",")[0].removeprefix("layer ")) for s in said if s.endswith("dense from the next step on")]
    assert given_up
    assert all(watched["density"][layer][-1] == 1 for layer in given_up)


def test_a_sound_run_is_left_alone(play):
    """Layers that keep their promises: the guard says nothing, and changes nothing."""
    kept = {"top_p": 0.95, "floor": 0.0, "dense_blocks": "0"}
    watched, found, _ = run(play, "on", kept)
    alone, _, _ = run(play, "off", kept)
    assert found["guard"] == [] and max(map(max, found["density"][1:])) < 1
    assert np.array_equal(watched.latent, alone.latent)


@pytest.mark.parametrize("recorded", [False, True])
def test_nan_is_evaluated_again(play, recorded):
    """The third sparse call is that of layer 2 in the first step."""
    result, found, text = run(play, "on", kind="nan", call=3, recorded=recorded)
    assert np.isfinite(result.latent).all()
    assert found["guard"][0] == "step 1: layer 2 gave NaN or Inf; run again, dense"
    assert "guard: step 1: layer 2 gave NaN or Inf" in text
    density = np.array(found["density"])
    assert (density[2] == 1).all() and (density[:, 0] == 1).all()
    assert (density[[0, 1, 3, 4, 5], 1:] < 1).all()
    assert result.run["dense"]["the guard"] == bundled.BLOCKS + STEPS - 1
    assert found["times"]["guard"] > 0


def test_nan_passes_without_the_guard(play):
    result, found, text = run(play, "off", kind="nan", call=3)
    assert np.isnan(result.latent).any()
    assert found["guard"] == [] and "NaN" not in text
