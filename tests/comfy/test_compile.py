"""ComfyUI's TorchCompileModel before and after our node; its node's backends need a compiler, so dynamo's own eager one
runs the graphs."""

import logging

import pytest
import torch
from torch._dynamo.utils import counters

from dit_accel.accel.attention import reasons
from dit_accel.accel.comfy.compat import is_compiled
from dit_accel.tests.support.closeness import NETWORK, assert_close

LAYERS = 2  # of the model


@pytest.fixture(autouse=True)
def _one_graph(comfy, monkeypatch):
    """As on a GPU: attention that torch.compile can trace, so that a forward is one graph."""
    import comfy.ldm.modules.attention
    import comfy.ldm.wan.model

    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", comfy.ldm.modules.attention.attention_pytorch)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model):
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    return TorchCompileModel.execute(model, "eager").result[0]


@pytest.mark.parametrize("ours_first", [True, False])
def test_sparse_steps_after_dense_ones(tiny, case, model, ours_first):
    """torch.compile drops its guards on transformer_options: the graph of a dense step must do for a sparse one. A
    second run compiles nothing."""

    def ours(model):
        return tiny.sparse(model, dense_first=0.5)

    both = compiled(ours(model)) if ours_first else ours(compiled(model))
    dense = tiny.sample(model, case)
    graphs = []
    for _ in range(2):
        assert_close(tiny.sample(both, case), dense, units=NETWORK)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 1
    for run in tiny.history(both):
        assert run.sparse_calls == LAYERS
        assert run.dense == {reasons.OUTSIDE_WINDOW: LAYERS, reasons.CROSS_ATTENTION: 2 * LAYERS}
        assert run.notes == ()


def test_a_graph_from_before_our_node_is_compiled_anew(tiny, case, model):
    """Once: what it made then is good for all further steps and runs."""
    before = compiled(model)
    dense = tiny.sample(before, case)
    sparse = tiny.sparse(before)
    graphs = []
    for _ in range(2):
        assert_close(tiny.sample(sparse, case), dense, units=NETWORK)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]
    for run in tiny.history(sparse):
        assert (run.sparse_calls, run.expected, run.notes) == (2 * LAYERS, 2 * LAYERS, ())


def test_a_model_that_asks_nobody_is_not_compiled_again_and_again(tiny, case, model, monkeypatch, caplog):
    """Its attention is computed by another node."""
    import comfy.ldm.wan.model

    resets, reset = [], torch.compiler.reset
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1) or reset())
    monkeypatch.setattr(
        comfy.ldm.wan.model,
        "optimized_attention",
        lambda q, *_, **__: q,  # no override is asked
    )
    sparse = compiled(tiny.sparse(model))
    with caplog.at_level(logging.INFO, logger="dit_accel"):
        for _ in range(2):
            tiny.sample(sparse, case)
    assert len(resets) == 1
    assert "no attention call came by in 2 forward passes" in caplog.text


def test_without_our_node_again(tiny, case, model):
    before = compiled(model)
    sparse = tiny.sparse(before, top_p=0.5, floor=0.0)
    tiny.sample(sparse, case)
    assert_close(tiny.sample(before, case), tiny.sample(model, case), units=64)


def test_compiled_blocks_are_seen(tiny, case):
    """Other packs compile a model's blocks in place."""
    model = case.model().model
    assert not is_compiled(model, {})
    model.diffusion_model.blocks[0] = torch.compile(model.diffusion_model.blocks[0], backend="eager")
    assert is_compiled(model, {})


@pytest.mark.thorough
@pytest.mark.parametrize(("block", "ours_first"), [("0", True), ("1", False)])
def test_spatio_temporal_guidance_leaves_out_its_blocks_alone(tiny, monkeypatch, block, ours_first):
    """LTX-2: a forward in which one block's attention is left out, and no other's."""
    import comfy.ldm.modules.attention as attention
    from comfy_extras.nodes_lt import LTXVSpatioTemporalGuidance

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    (ltx,) = (case for case in tiny.CASES if case.name == "ltx 2")

    def guided(model):
        return LTXVSpatioTemporalGuidance.execute(model, 1.0, block, 0.0, 1.0).result[0]

    model = ltx.model()
    both = compiled(guided(tiny.sparse(model)) if ours_first else tiny.sparse(guided(model)))
    found, alone = (tiny.sample(each, ltx, cfg=2.0, steps=1) for each in (both, guided(model)))
    assert_close(found, alone, units=NETWORK)
    (run,) = tiny.history(both)
    assert (run.sparse_calls, run.expected) == (3, 4)
