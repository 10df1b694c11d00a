"""A mistake in the budget is named before any sampling."""

import pytest

from dit_accel.accel.headless.server import GraphFailed, GraphRejected
from dit_accel.tests.support.graphs import video

MODEL = "wan21_t2v"


def graph(**budget):
    return video(MODEL, lambda graph, model: graph.accelerate(model, **budget))[0]


@pytest.mark.parametrize(
    "budget, named",
    [
        ({"dense_blocks": "3-"}, ["dense_blocks", "'3-'"]),
        ({"dense_blocks": "a"}, ["dense_blocks", "'a'"]),
        ({"dense_blocks": "7-2"}, ["dense_blocks", "7-2"]),
        ({"dense_first": 0.7, "dense_last": 0.4}, ["dense_first", "dense_last"]),
        # Numbers that a preset overrides are checked as well.
        ({"dense_blocks": "3-", "preset": "faithful"}, ["dense_blocks"]),
    ],
)
def test_named_before_sampling(play, budget, named):
    mark = play.server.mark()
    with pytest.raises(GraphFailed) as failure:
        play(graph(**budget))
    assert failure.value.node_type == "DitAccelBudget"
    assert all(word in failure.value.message for word in named)
    assert "sparse calls" not in play.server.log_since(mark)


@pytest.mark.parametrize("name, value", [("top_p", 0.0), ("max_density", 0.0), ("floor", 1.5), ("min_tokens", -1)])
def test_out_of_range_is_rejected(play, name, value):
    with pytest.raises(GraphRejected, match=name):
        play.server.post(graph(**{name: value}))
