"""What holds for all our panels: they are not saved, they do not overlap, and the canvas moves under them."""

import json
from pathlib import Path

import pytest

from dit_accel.tests.support.browsing import inside, overlap, pairs

pytestmark = pytest.mark.browser

WORKFLOWS = Path(__file__).parents[2] / "workflows"

FILLED = """async (payload) => {
    app.canvas.ds.reset();
    const add = (type, x) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, 130];
        return app.graph.add(node);
    };
    add("DitAccelBudget", 80);
    const sparse = add("DitAccelSparseAttention", 460);
    const report = add("DitAccelReport", 840);
    await new Promise((done) => setTimeout(done, 400));
    comfyAPI.api.api.dispatchCustomEvent("dit_accel.run", {
        node: String(sparse.id), state: "done", sparse: 90, dense: 30, density: 0.31, share: 0.75, reason: null,
        text: "density 0.31, 75 % of calls sparse",
    });
    report.onExecuted({ dit_accel_report: [payload] });
    await new Promise((done) => setTimeout(done, 800));
}"""


@pytest.mark.parametrize("workflow", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_opening_and_saving_an_example_shifts_no_value(either, workflow):
    saved = json.loads(workflow.read_text("utf-8"))
    reload = """async (workflow) => {
        await app.loadGraphData(workflow);
        await new Promise((done) => setTimeout(done, 800));
        return app.graph.serialize();
    }"""
    first = either.evaluate(reload, saved)
    ours = [node for node in first["nodes"] if node["type"].startswith("DitAccel")]
    before = {node["id"]: node.get("widgets_values") for node in saved["nodes"]}
    assert ours and all(node.get("widgets_values") == before[node["id"]] for node in ours)
    assert either.evaluate(reload, first) == first


def test_a_run_changes_nothing_that_is_saved(either, payload):
    either.evaluate(FILLED, payload())
    graph, prompt = either.evaluate("app.graphToPrompt().then(({ workflow, output }) => [workflow, output])")
    values = {node["type"]: node.get("widgets_values") or [] for node in graph["nodes"]}
    assert {name: len(saved) for name, saved in values.items()} == {
        "DitAccelBudget": 8,
        "DitAccelSparseAttention": 5,
        "DitAccelReport": 0,
    }
    text = json.dumps([graph, prompt])
    assert "density 0.31" not in text and "0.071" not in text and "few_step for up to" not in text
    assert not any({"meaning", "badge", "report"} & node["inputs"].keys() for node in prompt.values())


def test_nothing_overlaps(themed, payload, tmp_path):
    """Panels lie apart from each other and inside their nodes, and so do the parts of a panel."""
    themed.evaluate(FILLED, payload(30, 12))
    themed.screenshot(path=tmp_path / "classic.png")
    nodes = themed.evaluate(
        """app.graph.nodes.map((node) => {
            const [x, y] = app.canvasPosToClientPos(node.pos);
            return { x, y, width: node.size[0], height: node.size[1] };
        })"""
    )
    check_boxes(themed, nodes)
    themed.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    themed.wait_for_timeout(1200)
    themed.screenshot(path=tmp_path / "vue.png")
    nodes = [node.bounding_box() for node in themed.locator("[data-node-id]").all()]
    check_boxes(themed, nodes)


def check_boxes(page, nodes: list[dict]) -> None:
    panels = page.locator(".dit-accel").all()
    boxes = [panel.bounding_box() for panel in panels]
    assert len(boxes) == 3
    assert not any(overlap(one, other) for one, other in pairs(boxes))
    assert all(any(inside(box, node) for node in nodes) for box in boxes)
    assert not any(overlap(one, other) for one, other in pairs(nodes))
    for panel, box in zip(panels, boxes, strict=True):
        # All children of each element; the cells of the heatmap have a test of their own.
        families = panel.evaluate(
            """(panel) => [panel, ...panel.querySelectorAll("*")]
                .filter((element) => element.children.length && !element.closest("svg"))
                .map((element) => [...element.children].map((child) => {
                    const { x, y, width, height } = child.getBoundingClientRect();
                    return { x, y, width, height, name: child.className.baseVal ?? child.className };
                }))"""
        )
        assert len(families) > 0
        for family in families:
            assert all(inside(child, box) for child in family)
            assert not [pair for pair in pairs(family) if overlap(*pair)]


def test_the_wheel_zooms_the_canvas_over_a_panel(either, payload):
    either.evaluate(FILLED, payload())
    before = either.evaluate("app.canvas.ds.scale")
    either.locator(".bar").hover()
    either.mouse.wheel(0, 100)
    either.wait_for_timeout(300)
    over_panel = either.evaluate("app.canvas.ds.scale")
    either.evaluate("app.canvas.ds.reset()")
    either.mouse.move(300, 800)
    either.mouse.wheel(0, 100)
    either.wait_for_timeout(300)
    # Once, not twice.
    assert over_panel == either.evaluate("app.canvas.ds.scale") != before
