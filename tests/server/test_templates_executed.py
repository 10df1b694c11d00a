"""Official templates run up to their samplers' output, on tiny models of their architecture."""

import copy
import itertools

import numpy as np
import pytest

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.tests.support import media
from dit_accel.tests.support.checkpoints import CALLS
from dit_accel.tests.support.graphs import Graph
from dit_accel.tests.support.template_cases import CASES, EVERY_PATTERN, STANDINS
from dit_accel.tests.support.templates import model_edges, read_template, upstream

LOADED = {"unet_name", "ckpt_name"}
SMALLER = {"width": 128, "height": 128, "length": 5}
MEDIA = {"LoadImage": ("image", media.image), "LoadAudio": ("audio", media.audio), "LoadVideo": ("file", media.video)}


def shrink(case) -> Graph:
    """The template with stand-ins, tiny models and little to do."""
    graph = read_template(case.template)
    standins = STANDINS | case.standins
    for key, node in graph.items():
        inputs = node["inputs"]
        if node["class_type"] in standins:
            node["class_type"], kept = standins[node["class_type"]]
            node["inputs"] = inputs = {name: inputs[name] for name in kept}
        for name in LOADED & set(inputs):
            checkpoint = case.models.get(inputs[name].removesuffix(".safetensors"))
            if checkpoint:
                inputs[name] = f"{checkpoint}.safetensors"
        if "steps" in inputs:
            inputs["steps"] = case.steps
        inputs.update({name: size for name, size in SMALLER.items() if name in inputs})
        inputs.update(case.inputs.get(key, {}))
    return graph


def write_media(graph, folder) -> None:
    """The files that the graph's nodes load."""
    for node in graph.values():
        if node["class_type"] in MEDIA:
            name, write = MEDIA[node["class_type"]]
            path = folder / node["inputs"][name]
            path.parent.mkdir(exist_ok=True)
            write(path)


def checkpoint_of(graph, model) -> str:
    """The tiny checkpoint that a MODEL link comes from."""
    loaders = upstream(graph, model[0]).values()
    (name,) = {node["inputs"][key] for node in loaders for key in LOADED & set(node["inputs"])}
    return name.removesuffix(".safetensors")


@pytest.mark.parametrize(
    ("case", "pattern"),
    [*itertools.product(EVERY_PATTERN, PATTERNS), *zip(CASES, itertools.cycle(PATTERNS), strict=False)],
    ids=lambda value: value if isinstance(value, str) else value.template,
)
def test_every_sampling_run(server, play, server_base, case, pattern):
    graph = upstream(copy.deepcopy(case.graph) or shrink(case), case.sampler)
    write_media(graph, server_base / "input")
    edges = model_edges(graph, server.request("/object_info"))
    assert len(edges) == case.runs
    checkpoints = [checkpoint_of(graph, graph[key]["inputs"][name]) for key, name in edges]
    assert set(checkpoints) == set(case.models.values())
    for number, (key, name) in enumerate(edges):
        # A number of tokens that no video is below tells our nodes apart: ComfyUI executes equal ones once.
        budget = {"top_p": 0.5, "floor": 0.0, "min_tokens": number}
        model = graph.accelerate(graph[key]["inputs"][name], pattern=pattern, **budget)
        graph[key]["inputs"][name] = model
        graph.add("StandinHistory", model=model, samples=[case.sampler, 0])
    graph.add("StandinReadLatent", samples=[case.sampler, 0])
    result = play(graph)

    assert len(result.runs) == len(edges)
    for run, checkpoint in zip(result.runs, checkpoints, strict=True):
        assert run["forwards"] == case.forwards
        assert run["pattern"] == pattern
        if case.dense:
            assert not run["sparse"] and set(run["dense"]) == {case.dense}
        else:
            assert run["sparse"] == {"torch": CALLS[checkpoint] * run["forwards"]}
            assert set(run["dense"]) <= reasons.NOT_SELF_ATTENTION
            assert run["density"] < 1
    for latent in result.latents:
        assert np.isfinite(latent).all() and latent.std() > 0
