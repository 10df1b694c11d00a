"""The report on a run: what it shows, and where it is kept."""

import json

import numpy as np
import pytest

from dit_accel.tests.support import bundled_graphs as bundled
from dit_accel.tests.support.checkpoints import CALLS
from dit_accel.tests.support.graphs import Graph
from dit_accel.tests.support.reports import payloads, report, small, texts

MODEL = "wan21_t2v"
# About half of the map of the bundled model.
SPARSE = {"top_p": 0.8, "floor": 0.0}


# What it shows


@pytest.mark.parametrize("guard", ["on", "off"])
def test_cells(play, guard):
    """Layers 0 and 1 and the first of four steps are dense, all else is sparse, and sampled if the guard is on."""
    graph = Graph()
    model = graph.accelerate(bundled.load(graph), guard=guard, dense_blocks="0, 1", dense_first=0.25, **SPARSE)
    samples = bundled.sample(graph, model)
    node, _ = report(graph, model, samples)
    graph.add("PreviewImage", images=[node, 1])
    graph.read(samples, model)
    result = play(graph)
    (payload,) = payloads(result)
    (run,) = payload["runs"]
    assert len(result.outputs["images"]) == 1
    assert [step["number"] for step in run["steps"]] == [1, 2, 3, 4]
    assert [step["dense"] for step in run["steps"]] == ["outside the budget's window", None, None, None]
    density = np.array(run["density"])
    dense = np.zeros((bundled.BLOCKS, 4), bool)
    dense[:2], dense[:, 0] = True, True
    assert density.shape == dense.shape
    assert (density[dense] == 1).all() and (density[~dense] < 0.99).all()
    for name in ("error", "mass"):
        known = np.array([[cell is not None for cell in row] for row in run[name]])
        assert np.array_equal(known, ~dense if guard == "on" else np.zeros_like(dense))
    assert density[~dense].mean() == pytest.approx(result.run["density"], abs=1e-3)
    assert texts(result) == [payload["text"]]
    assert "dense by reason: " in payload["text"] and "dense_blocks 6" in payload["text"]
    assert ("sampled error" in payload["text"]) == (guard == "on")


def test_the_advice_is_in_the_text(play):
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL), min_tokens=100_000)
    report(graph, model, small(graph, model))
    (payload,) = payloads(play(graph))
    (sentence,) = [sentence for sentence in payload["advice"] if "nothing was sparse" in sentence]
    assert "shorter than min_tokens" in sentence and f"- {sentence}" in payload["text"]


def test_what_was_not_sampled_stays_blank(play):
    """In a longer run each layer has its turn once in four steps."""
    graph = Graph()
    model = graph.accelerate(graph.load(MODEL))
    report(graph, model, small(graph, model, steps=12))
    (run,) = payloads(play(graph))[0]["runs"]
    for layer in range(CALLS[MODEL]):
        turns = [step for step in range(12) if (layer + step) % 4 == 0]
        assert [step for step in range(12) if run["error"][layer][step] is not None] == turns
    assert run["density"] == [[1.0] * 12] * CALLS[MODEL] and run["steps"][0]["dense"] is None


def test_the_sampled_error_is_the_true_one(play):
    """16 rows of each call stand for all of them: over a run the mean is within a quarter."""
    graph = Graph()
    model = graph.accelerate(bundled.load(graph), **SPARSE)
    model = graph.add("StandinExactErrors", model=model, name="report")
    samples = bundled.sample(graph, model, steps=6)
    report(graph, model, samples)
    graph.add("StandinReadErrors", name="report", samples=samples)
    result = play(graph)
    (run,) = payloads(result)[0]["runs"]
    # Calls come step by step, cells lie layer by layer.
    exact = np.array(result.outputs["errors"]).reshape(6, bundled.BLOCKS).T
    sampled = np.array(run["error"], float)
    assert exact.mean() > 0.01
    assert sampled.mean() == pytest.approx(exact.mean(), rel=0.25)
    assert np.corrcoef(sampled.ravel(), exact.ravel())[0, 1] > 0.7


# Record


@pytest.mark.parametrize("sparse", [None, "before", "after"])
def test_recording_changes_nothing(play, sparse):
    """Record alone, before or behind Sparse Attention: the same latent, bit by bit."""

    def run(recorded: bool):
        graph = Graph()
        model = bundled.load(graph)
        steps = [lambda model: graph.accelerate(model, **SPARSE)] if sparse else []
        if recorded:
            steps.insert(0 if sparse == "before" else len(steps), graph.record)
        for step in steps:
            model = step(model)
        samples = bundled.sample(graph, model)
        if recorded:
            report(graph, model, samples)
        graph.read(samples, model)
        return play(graph)

    plain, recorded = run(False), run(True)
    assert np.array_equal(plain.latent, recorded.latent)
    (found,) = payloads(recorded)[0]["runs"]
    density = np.array(found["density"])
    if sparse:
        assert recorded.run["sparse"] == plain.run["sparse"] and (density < 1).all()
        assert recorded.run["density"] == plain.run["density"]
    else:
        assert recorded.run["dense"]["recorded, not made sparse"] == 4 * bundled.BLOCKS and (density == 1).all()


# Where it is kept


def saved_picture(play, with_workflow: bool):
    graph = Graph()
    model = graph.accelerate(bundled.load(graph), **SPARSE)
    samples = report(graph, model, bundled.sample(graph, model, steps=1))
    node = samples[0]
    images = bundled.decode(graph, samples)
    graph.add("SaveImage", images=images, filename_prefix="with report")
    video = graph.add("CreateVideo", images=images, fps=8.0)
    graph.add("SaveVideo", video=video, filename_prefix="with report", format="mp4", codec="h264")
    body = {"prompt": graph}
    if with_workflow:
        body["extra_data"] = {"extra_pnginfo": {"workflow": {"nodes": []}}}
    answer = play.server.request("/prompt", body)
    assert not answer["node_errors"]
    outputs = play.server.wait(answer["prompt_id"], 120)["outputs"]
    folder = play.server.base / "output"
    saved = [entry["images"][-1]["filename"] for entry in outputs.values() if "images" in entry]
    (picture,) = [folder / name for name in saved if name.endswith(".png")]
    (clip,) = [folder / name for name in saved if name.endswith(".mp4")]
    return node, outputs[node]["text"][0], png_metadata(picture), video_metadata(clip)


def png_metadata(path) -> dict:
    from PIL import Image

    with Image.open(path) as picture:
        return {name: json.loads(value) for name, value in picture.text.items()}


def video_metadata(path) -> dict:
    import av

    with av.open(str(path)) as clip:
        return {name: json.loads(value) for name, value in clip.metadata.items() if value.startswith(("{", '"'))}


def test_saved_files_carry_the_report(play):
    _, text, *files = saved_picture(play, with_workflow=True)
    assert "svg2 on WanModel" in text
    for metadata in files:
        assert metadata["dit_accel_report"] == text
        assert metadata["workflow"] == {"nodes": []}


def test_files_of_runs_through_the_api_carry_it_in_the_prompt(play):
    node, text, *files = saved_picture(play, with_workflow=False)
    for metadata in files:
        assert metadata["prompt"][node]["_meta"]["dit_accel_report"] == text
