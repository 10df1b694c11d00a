"""Graphs of the API that earlier steps of the releases accepted: a later one must run them as they are."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dit_accel.accel.attention.account.run_summary import parse_line
from dit_accel.accel.headless.server import GraphRejected
from dit_accel.accel.quant.formats.comfy_quant_writer import tensors_of
from dit_accel.tests.support.quantised_wan import quantised

GOLDEN = Path(__file__).parents[1] / "golden"
# In their order: what one saves a later one loads.
GRAPHS = {file.stem: json.loads(file.read_text()) for file in sorted((GOLDEN / "released_graphs").glob("*.json"))}
FIRST = GRAPHS["1_sparse_attention"]
CONTRACT = json.loads((Path(__file__).parent / "object_info.json").read_text())
OPTIONAL = {node: {given["name"] for given in info["inputs"] if given["optional"]} for node, info in CONTRACT.items()}


@pytest.fixture(scope="module")
def files(server_base):
    """The files that the graphs name."""
    models = server_base / "models"
    plain = models / "diffusion_models" / "wan21_t2v.safetensors"
    with safe_open(plain, "pt") as file:
        metadata = file.metadata()
    tensors, header = tensors_of(quantised(load_file(plain))[0])
    save_file(tensors, plain.with_name("released_4bit.safetensors"), metadata={**metadata, **header})
    (models / "vae").mkdir(exist_ok=True)
    shutil.copy(GOLDEN / "dcae_mit_sana_like.safetensors", models / "vae")


def without_optional(graph: dict) -> dict:
    """The graph as it was before the inputs that are optional now."""
    return {
        name: {
            **node,
            "inputs": {
                given: value
                for given, value in node["inputs"].items()
                if given not in OPTIONAL.get(node["class_type"], {}) or isinstance(value, list)
            },
        }
        for name, node in graph.items()
    }


def count(graph: dict, node: str) -> int:
    return sum(each["class_type"] == node for each in graph.values())


@pytest.mark.parametrize("name", GRAPHS)
def test_a_released_graph_runs(play, files, name):
    graph = GRAPHS[name]
    result = play(graph)
    runs = [line for line in map(parse_line, result.log.splitlines()) if line]
    assert len(runs) == count(graph, "KSampler")
    assert sum(run["sparse"] > 0 for run in runs) == count(graph, "DitAccelSparseAttention")


def test_values_that_are_optional_now_may_be_left_out(play, files):
    """Links to other nodes stay, such as a sparse node's budget: what it makes is used."""
    graph = without_optional(FIRST)
    left_out = [set(FIRST[name]["inputs"]) - set(node["inputs"]) for name, node in graph.items()]
    defaults = [
        {given["name"] for given in info["inputs"] if given["optional"] and "default" in given}
        for info in CONTRACT.values()
    ]
    assert sorted(filter(None, left_out), key=len) == sorted(filter(None, defaults), key=len)
    run = parse_line(play(graph).log)
    assert run["budget"] == "custom"


def test_a_graph_without_a_required_input_is_refused(play, files):
    """Which says that the server looks."""
    graph = without_optional(FIRST)
    (sparse,) = (node for node in graph.values() if node["class_type"] == "DitAccelSparseAttention")
    del sparse["inputs"]["pattern"]
    with pytest.raises(GraphRejected, match="required_input_missing"):
        play(graph)
