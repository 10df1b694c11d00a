"""ComfyUI's context windows before and after our node, with what their windows do to reference and guide tokens."""

import dataclasses
import functools

import pytest
import torch

from dit_accel.accel.attention import executor
from dit_accel.tests.support.closeness import NETWORK, assert_close


def windowed(node, model, length, overlap):
    """The model in windows; real frames for the nodes of one family, latent ones for the general node."""
    import comfy_extras.nodes_context_windows as nodes

    options = {"context_schedule": "standard_static", "context_stride": 1, "closed_loop": False, "freenoise": False}
    if node == "ContextWindowsManualNode":
        options["dim"] = 2
    return getattr(nodes, node).execute(model, length, overlap, fuse_method="pyramid", **options).result[0]


# Windows of three latent frames that overlap by one. Core puts the frame before it in front of each but the first.
ANY = functools.partial(windowed, "ContextWindowsManualNode", length=3, overlap=1)
WAN = functools.partial(windowed, "WanContextWindowsManualNode", length=9, overlap=4)
LTX = functools.partial(windowed, "LTXVContextWindowsNode", length=17, overlap=8)

ENDS, START = (0, 24), (0, 0)  # the guides' real frames
# Case, node, tokens that are not video in each window, frames of the guides.
ROWS = [
    ("wan t2v", WAN, [0, 0], None),
    ("wan i2v", WAN, [0, 0], None),
    ("wan vace", WAN, [0, 0], None),
    ("wan fun control with reference", WAN, [42, 42], None),
    ("wan in-context latents", WAN, [96, 96], None),
    ("hunyuan 1", ANY, [20, 20], None),
    ("hunyuan 1 reference latent", ANY, [62, 62], None),
    ("hunyuan 1.5 i2v", ANY, [20, 20], None),
    ("ltx video", LTX, [0, 0], None),
    ("ltx 2", LTX, [0, 0], None),
    ("ltx 2.3 guides", LTX, [12, 12], ENDS),
    ("ltx 2.3 guides", LTX, [24, 0], START),
]


# One of each node, and one with tokens that are not video.
FAST = (ROWS[0], ROWS[6], ROWS[10])


@pytest.fixture(
    scope="module",
    params=[row if row in FAST else pytest.param(row, marks=pytest.mark.thorough) for row in ROWS],
    ids=lambda row: f"{row[0]} {row[3] or ''}",
)
def row(request, tiny):
    """Case, model, node, tokens that are not video in each window."""
    name, node, extra, frames = request.param
    case = next(case for case in tiny.CASES if case.name == name)
    if frames:
        conditions = case.conditions()
        places = conditions["keyframe_idxs"].clone()
        for guide, frame in enumerate(frames):
            places[:, 0, guide * 48 : (guide + 1) * 48] = frame
        case = dataclasses.replace(case, conditions=lambda: {**conditions, "keyframe_idxs": places})
    with torch.inference_mode():
        return case, case.model(), node, extra


@pytest.fixture
def extras(monkeypatch):
    """Tokens that are not video, of every executed sparse call."""
    seen = []
    execute = executor.execute

    def spy(q, k, v, plan, **kwargs):
        seen.append(int(plan.queries.offsets[0, 1]))
        return execute(q, k, v, plan, **kwargs)

    monkeypatch.setattr(executor, "execute", spy)
    return seen


def test_density_one_equals_windows_alone(tiny, row, extras):
    case, model, node, extra = row
    alone = tiny.sample(node(model), case, steps=1)
    for both in (tiny.sparse(node(model)), node(tiny.sparse(model))):
        extras.clear()
        assert_close(tiny.sample(both, case, steps=1), alone, units=NETWORK)
        (run,) = tiny.history(both)
        assert run.sparse_calls == run.expected == case.calls * run.forwards
        assert run.forwards % len(extra) == 0
        assert run.notes == ()
        a_window = case.calls * run.forwards // len(extra)
        assert extras == [tokens for tokens in extra for _ in range(a_window)]


def test_half_the_attention_is_sparse_in_every_window(tiny, row):
    case, model, node, extra = row
    sparse = node(tiny.sparse(model, top_p=0.5, floor=0.0))
    tiny.sample(sparse, case, steps=2)
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == run.expected >= 2 * len(extra) * case.calls
    assert run.density < 0.95


def test_windows_of_unlike_size_have_maps_of_their_own(tiny, case, model):
    """The second window has a frame more than the first; a static pattern's map is made once for each."""
    sparse = WAN(tiny.sparse(model, pattern="radial", top_p=0.5, floor=0.0))
    tiny.sample(sparse, case, steps=1)
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == 2 * case.calls
    assert run.density < 0.95
