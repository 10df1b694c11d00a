"""Every official video template takes our node in front of its samplers."""

import pytest

from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.headless.server import GraphFailed, GraphRejected
from dit_accel.tests.support.templates import TEMPLATES, inputs_of, model_edges, read_template

MARKER = "__marker__"
MEDIA = (".png", ".mp4", ".wav")

# What ComfyUI refuses in a template itself, far from the model: three hold a bit depth of newer versions, one
# was saved with a link missing.
REPAIRS = {
    "video_ltx2_3_ic_lora": ("129:122", "bit_depth", 8),
    "video_ltx2_3_t2v": ("267:242", "bit_depth", 8),
    "video_minimax_h3_multiframe_reference": ("130", "bit_depth", 8),
    "video_ltx2_i2v_lora": ("75", "video", ["92:97", 0]),
}


@pytest.fixture(scope="module")
def held(server, play):
    """The server with its queue at a halt: what is posted is checked, and never runs."""
    prompt = play.hold()
    yield server
    server.interrupt()
    with pytest.raises(GraphFailed, match="interrupted"):
        server.wait(prompt, timeout=30)


@pytest.fixture(scope="module")
def folders(held, server_base):
    """(node class, input) -> the folder whose files the input lists. A marker file in each folder tells."""
    places = [server_base / "models" / name for name in held.request("/models")]
    markers = {}
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        markers[f"{MARKER}{place.name}.safetensors"] = place
    for ending in MEDIA:
        markers[MARKER + ending] = server_base / "input"
    for name, place in markers.items():
        (place / name).touch()
    found = {}
    for node, info in held.request("/object_info").items():
        for name, spec in inputs_of(info).items():
            for option in filter(markers.__contains__, options_of(spec)):
                found[node, name] = markers[option]
    for name, place in markers.items():
        (place / name).unlink()
    return found


@pytest.fixture(scope="module")
def nodes(held):
    return held.request("/object_info")


def test_all_templates_are_here():
    assert len(TEMPLATES) == 35


@pytest.mark.parametrize("template", TEMPLATES)
def test_accepted(held, nodes, folders, template):
    graph = read_template(template)
    if template in REPAIRS:
        node, name, value = REPAIRS[template]
        graph[node]["inputs"][name] = value
    assert not {node["class_type"] for node in graph.values()} - set(nodes), "ComfyUI lacks nodes of this template"
    for node in graph.values():
        for name, value in node["inputs"].items():
            place = folders.get((node["class_type"], name))
            if place is not None and isinstance(value, str):
                (place / value).parent.mkdir(parents=True, exist_ok=True)
                (place / value).touch()

    edges = model_edges(graph, nodes)
    assert edges
    for node, name in edges:
        # Every pattern in its turn.
        pattern = list(PATTERNS)[TEMPLATES.index(template) % len(PATTERNS)]
        graph[node]["inputs"][name] = graph.accelerate(graph[node]["inputs"][name], pattern=pattern)
    held.cancel(held.post(graph))


def test_a_wrong_graph_is_rejected(held, folders):
    """The check above can fail: here a model file is missing."""
    graph = read_template(TEMPLATES[0])
    loader = next(node for node in graph.values() if node["class_type"] == "UNETLoader")
    loader["inputs"]["unet_name"] = "missing.safetensors"
    with pytest.raises(GraphRejected, match="missing"):
        held.post(graph)


def options_of(spec):
    """The values of a COMBO, in either of the two forms that nodes are described in."""
    kind, *rest = spec
    values = kind if isinstance(kind, list) else (rest[0].get("options") or [] if rest else [])
    return [value for value in values if isinstance(value, str)]
