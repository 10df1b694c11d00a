"""Without Triton a run's own times decide what is sparse, in a real server."""

from dit_accel.tests.support.checkpoints import CALLS
from dit_accel.tests.support.graphs import video

MODEL = "wan21_t2v"


def test_one_layer_is_tried_first(play):
    result = play(video(MODEL, lambda graph, model: graph.accelerate(model, fallback="dense", top_p=0.5, floor=0.0))[0])
    tried, untried = result.run["sparse"]["torch"], result.run["dense"]["one layer is tried first"]
    assert 1 <= tried < CALLS[MODEL] * result.run["forwards"] and untried >= 1
    assert "one layer is tried first" in result.log
