"""Conditioning saved in one graph and loaded in another, through the nodes."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dit_accel.accel.headless.server import GraphFailed, GraphRejected
from dit_accel.tests.support.graphs import SMALL, Graph, nonce


def save(play, prefix: str, **prompt) -> str:
    graph = Graph()
    graph.add(
        "DitAccelSaveConditioning", conditioning=graph.conditioning(5, **prompt), filename_prefix=f"{prefix}{nonce()}"
    )
    (name,) = play(graph).outputs["text"]
    return name.replace(os.sep, "/")


def sample(play, prompt_of, checkpoint: str = "wan21_t2v"):
    graph = Graph()
    model = graph.load(checkpoint)
    prompt = prompt_of(graph)
    samples = graph.ksampler(model, graph.empty_latent(SMALL), positive=prompt, negative=prompt, cfg=1.0)
    graph.read(samples, model)
    return play(graph).latent


@pytest.mark.parametrize(
    ("checkpoint", "prompt"),
    [("wan21_t2v", {}), ("hunyuan_video", {"padding": 6})],
    ids=["pooled output", "and attention mask"],
)
def test_a_loaded_conditioning_samples_the_same(play, checkpoint, prompt):
    name = save(play, "folder/prompt", **prompt)
    assert name.startswith("folder/prompt") and name.endswith("_00001_.safetensors")
    direct = sample(play, lambda graph: graph.conditioning(5, **prompt), checkpoint)
    loaded = sample(
        play,
        lambda graph: graph.add("DitAccelLoadConditioning", conditioning_name=name.replace("/", os.sep)),
        checkpoint,
    )
    other = sample(play, lambda graph: graph.conditioning(6, **prompt), checkpoint)
    assert np.array_equal(direct, loaded)
    assert not np.array_equal(direct, other)


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_nothing_is_overwritten(play, server, ending):
    graph = Graph()
    prefix = f"twice{nonce()}"
    for seed in (1, 2):
        conditioning = graph.conditioning(seed)
        graph.add("DitAccelSaveConditioning", conditioning=conditioning, filename_prefix=prefix + ending)
    # The server runs the two in an order of its own.
    names = sorted(play(graph).outputs["text"])
    assert names == [f"{prefix}_00001_.safetensors", f"{prefix}_00002_.safetensors"]
    (_, settings) = server.object_info("DitAccelLoadConditioning")["input"]["required"]["conditioning_name"]
    assert {f"{prefix}_0000{number}_.safetensors" for number in (1, 2)} <= set(settings["options"])


def test_a_changed_file_is_read_again(play, server):
    name, other = save(play, "changing"), save(play, "changing", tokens=3)

    def load(graph):
        return graph.add("DitAccelLoadConditioning", conditioning_name=name.replace("/", os.sep))

    before = sample(play, load)
    folder = server.base / "models" / "dit_accel"
    (folder / other).replace(folder / name)
    assert not np.array_equal(sample(play, load), before)


def test_another_file_is_refused_with_its_name(play, server):
    path = server.base / "models" / "dit_accel" / "not ours.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(GraphFailed) as failure:
        sample(play, lambda graph: graph.add("DitAccelLoadConditioning", conditioning_name=path.name))
    assert failure.value.node_type == "DitAccelLoadConditioning"
    assert str(path) in failure.value.message
    assert "expected a file of the format dit-accel/conditioning" in failure.value.message


def test_what_cannot_be_kept_is_refused_by_name(play, server):
    graph = Graph()
    conditioning = graph.conditioning(5, vision=4)
    graph.add("DitAccelSaveConditioning", conditioning=conditioning, filename_prefix="vision")
    with pytest.raises(GraphFailed, match=r"clip_vision_output.*found Output, which cannot be kept"):
        play(graph)
    assert not list((server.base / "models" / "dit_accel").glob("*vision*"))


def test_a_missing_file_is_refused_before_the_run(play):
    with pytest.raises(GraphRejected, match="conditioning_name"):
        sample(play, lambda graph: graph.add("DitAccelLoadConditioning", conditioning_name="gone.safetensors"))


@pytest.mark.parametrize("prefix", ["../outside", "/outside"])
def test_a_prefix_cannot_leave_the_folder(play, server, prefix):
    graph = Graph()
    graph.add("DitAccelSaveConditioning", conditioning=graph.conditioning(5), filename_prefix=prefix)
    with pytest.raises(GraphFailed, match="filename_prefix: expected"):
        play(graph)
    folder = server.base / "models" / "dit_accel"
    assert not list((folder / prefix).parent.glob("outside*"))


@pytest.mark.parametrize("prefix", ["", ".", "..", "a/..", "/"])
def test_a_prefix_without_a_name_is_refused(play, prefix):
    graph = Graph()
    graph.add("DitAccelSaveConditioning", conditioning=graph.conditioning(5), filename_prefix=prefix)
    with pytest.raises(GraphFailed, match="filename_prefix: expected the start of a file name"):
        play(graph)
