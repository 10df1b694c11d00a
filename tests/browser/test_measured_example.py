"""The example that measures, run in the browser: what is on the screen is what the server found."""

import json
import re
from pathlib import Path

import av
import pytest

from dit_accel.accel.attention.account.run_summary import parse_line
from dit_accel.accel.attention.reasons import NOT_SELF_ATTENTION
from dit_accel.tests.support.browsing import (
    badges,
    changed,
    inside,
    open_workflow,
    overlap,
    pairs,
    press_run,
    recorded_cells,
    shown_cells,
)

pytestmark = pytest.mark.browser

EXAMPLE = Path(__file__).parents[2] / "workflows" / "small_video_model_measured.json"
# A clip of which every step takes a fraction of a second.
SMALLER = {
    "EmptyHunyuanLatentVideo": {"width": 192, "height": 112, "length": 17},
    "KSampler": {"steps": 4},
}


def smaller() -> dict:
    return changed(json.loads(EXAMPLE.read_text("utf-8")), SMALLER)


def show_whole_graph(page) -> None:
    page.set_viewport_size({"width": 2400, "height": 1120})
    page.evaluate(
        """() => {
            const boxes = app.graph.nodes.map((node) => [...node.pos, ...node.size]);
            const [left, top] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])));
            const [width, height] = [0, 1].map(
                (i) => Math.max(...boxes.map((box) => box[i] + box[i + 2])) - [left, top][i]);
            const { ds } = app.canvas;
            ds.scale = Math.min(2250 / width, 900 / height);
            ds.offset = [100 / ds.scale - left, 150 / ds.scale - top];
            app.canvas.setDirty(true, true);
        }"""
    )
    page.wait_for_timeout(800)


def classic_boxes(page) -> list[dict]:
    """On the screen, titles included."""
    return page.evaluate(
        """() => app.graph.nodes.map((node) => {
            const { scale } = app.canvas.ds;
            const title = LiteGraph.NODE_TITLE_HEIGHT;
            const [x, y] = app.canvasPosToClientPos([node.pos[0], node.pos[1] - title]);
            return { title: node.title, x, y, width: scale * node.size[0], height: scale * (node.size[1] + title) };
        })"""
    )


def vue_boxes(page) -> list[dict]:
    return [{"title": e.inner_text(), **e.bounding_box()} for e in page.locator("[data-node-id]").all()]


def check_layout(page, nodes: list[dict]) -> None:
    assert len(nodes) == len(json.loads(EXAMPLE.read_text("utf-8"))["nodes"])
    assert not [(one["title"], other["title"]) for one, other in pairs(nodes) if overlap(one, other)]
    panels = [panel.bounding_box() for panel in page.locator(".dit-accel").all()]
    assert len(panels) == 3 and all(any(inside(panel, node) for node in nodes) for panel in panels)


def test_the_screen_and_the_video_tell_what_the_run_recorded(page, server):
    page.evaluate(
        """() => {
            window.messages = [];
            comfyAPI.api.api.addEventListener("dit_accel.run", ({ detail }) => messages.push(detail));
        }"""
    )
    open_workflow(page, smaller())
    mark = server.mark()
    outputs = server.wait(press_run(page), timeout=300)["outputs"]
    page.wait_for_function("messages.at(-1)?.state === 'done'")
    show_whole_graph(page)
    (report,) = (content for output in outputs.values() for content in output.get("dit_accel_report", []))
    (run,) = report["runs"]
    dense, sparse = filter(None, map(parse_line, server.log_since(mark).splitlines()))

    # The budget that was measured in the first run is the second one's.
    assert dense["sparse"] == 0 and dense["dense"]["recorded, not made sparse"] == 24
    assert sparse["sparse"] > 0 and sparse["budget"] == "custom with a profile"

    cells = recorded_cells(run)
    assert shown_cells(page) == cells and len(cells) == 6 * 4
    # The first step is dense, and a later one was sampled.
    assert all(cells[layer, 1] == (1, None) for layer in range(6))
    assert any(error for _, error in cells.values())
    assert page.locator(".advice li").all_inner_texts() == report["advice"]

    ((state, text),) = badges(page)
    density, share = map(float, re.findall(r"\d+(?:\.\d+)?", text))
    calls = sparse["sparse"] + sum(n for reason, n in sparse["dense"].items() if reason not in NOT_SELF_ATTENTION)
    assert state == "done"
    assert density == pytest.approx(sparse["density"], abs=1e-3)
    assert share == pytest.approx(100 * sparse["sparse"] / calls, abs=0.6)

    (video,) = (saved for output in outputs.values() for saved in output.get("images", []) if saved["type"] == "output")
    with av.open(server.base / "output" / video["subfolder"] / video["filename"]) as file:
        assert json.loads(file.metadata["dit_accel_report"]) == report["text"]
    texts = [text for output in outputs.values() for text in output.get("text", [])]
    assert sum("PSNR" in text for text in texts) == 2 and sum("expected density" in text for text in texts) == 2


@pytest.mark.parametrize("themed", [("dark", 1), ("light", 2)], ids=["dark-1x", "light-2x"], indirect=True)
def test_nothing_overlaps_before_or_after_a_run(themed, server, tmp_path):
    open_workflow(themed, smaller())
    show_whole_graph(themed)
    check_layout(themed, classic_boxes(themed))
    server.wait(press_run(themed), timeout=300)
    # Pictures and the video load.
    themed.wait_for_timeout(2000)
    themed.screenshot(path=tmp_path / "classic.png")
    check_layout(themed, classic_boxes(themed))
    themed.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    themed.wait_for_timeout(1500)
    show_whole_graph(themed)
    themed.screenshot(path=tmp_path / "vue.png")
    check_layout(themed, vue_boxes(themed))
