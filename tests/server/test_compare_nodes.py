"""Two decoded clips in one graph, compared."""

import pytest

from dit_accel.accel.headless.server import GraphFailed
from dit_accel.tests.support import bundled_graphs as bundled
from dit_accel.tests.support.graphs import Graph


def compare(graph: Graph, reference: list, test: list) -> list:
    node, _ = graph.add("DitAccelCompareVideos", reference=reference, test=test)
    for output in (0, 1):
        graph.add("PreviewImage", images=[node, output])
    for output in (3, 4, 5):
        graph.add("PreviewAny", source=[node, output])
    return [node, 0]


def clip(graph: Graph, model: list) -> list:
    return bundled.decode(graph, bundled.sample(graph, model))


def test_dense_and_sparse(play):
    graph = Graph()
    model = bundled.load(graph)
    compare(graph, clip(graph, model), clip(graph, graph.accelerate(model, top_p=0.8, floor=0.0)))
    result = play(graph)
    text, *numbers = result.outputs["text"]
    psnr, ssim, flicker = map(float, numbers)
    assert 15 < psnr < 60 and 0.3 < ssim < 1 and 0 < flicker < 0.3
    assert f"PSNR: {psnr:.2f} dB (mean)" in text and f"SSIM: {ssim:.4f} (mean)" in text
    assert f"flicker: {flicker:.5f}" in text
    # One plot, and a picture for each frame.
    assert len(result.outputs["images"]) == 1 + bundled.SIZE[0]


def test_the_same_clip(play):
    graph = Graph()
    frames = graph.add("EmptyImage", width=64, height=32, batch_size=3, color=0x336699)
    compare(graph, frames, frames)
    text, psnr, ssim, flicker = play(graph).outputs["text"]
    assert "the clips are identical" in text
    assert (psnr, float(ssim), float(flicker)) == ("inf", pytest.approx(1), 0)


def test_sizes_that_differ_are_both_named(play):
    graph = Graph()
    clips = [graph.add("EmptyImage", width=width, height=32, batch_size=3, color=0) for width in (64, 48)]
    compare(graph, *clips)
    with pytest.raises(GraphFailed) as failure:
        play(graph)
    assert failure.value.node_type == "DitAccelCompareVideos"
    assert "3 frames of 64 x 32 pixels" in failure.value.message
    assert "3 frames of 48 x 32 pixels" in failure.value.message
