"""The official workflow templates in tests/golden/templates_api."""

import json
from pathlib import Path

from dit_accel.tests.support.graphs import Graph

_FOLDER = Path(__file__).parents[1] / "golden" / "templates_api"
TEMPLATES = sorted(path.stem for path in _FOLDER.glob("*.json"))


def read_template(name: str) -> Graph:
    return Graph(json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def model_edges(graph: Graph, nodes: dict) -> list[tuple[str, str]]:
    """(node id, input) of every MODEL link into a sampler or a guider; nodes is the server's /object_info."""
    edges = []
    for key, node in graph.items():
        info = nodes[node["class_type"]]
        outputs = set(info["output"])
        if "MODEL" in outputs or not outputs & {"LATENT", "GUIDER"}:
            continue
        for name, spec in inputs_of(info).items():
            if spec[0] == "MODEL" and isinstance(node["inputs"].get(name), list):
                edges.append((key, name))
    return edges


def inputs_of(info: dict) -> dict:
    """All inputs of a node in /object_info, by name."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def upstream(graph: Graph, node: str) -> Graph:
    """The part of a graph that one node stands on, and the node."""
    kept, waiting = Graph(), [node]
    while waiting:
        key = waiting.pop()
        if key not in kept:
            kept[key] = graph[key]
            values = graph[key]["inputs"].values()
            waiting += [value[0] for value in values if isinstance(value, list)]
    return kept
