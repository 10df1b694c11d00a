"""Reading our nodes off a page of the frontend, and where things lie on it."""

from __future__ import annotations

from collections.abc import Iterator


def changed(workflow: dict, values: dict[str, dict]) -> dict:
    """The workflow with other values in the widgets of some nodes: type -> name -> value."""
    nodes = [_changed(node, values.get(node["type"])) for node in workflow["nodes"]]
    return {**workflow, "nodes": nodes}


def open_workflow(page, workflow: dict) -> None:
    """Opens a workflow as the template browser does."""
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    page.wait_for_timeout(1000)
    types = sorted(page.evaluate("app.graph.nodes.map((n) => n.type)"))
    assert types == sorted(node["type"] for node in workflow["nodes"])
    assert page.get_by_text("errors found").count() == 0


def press_run(page) -> str:
    """The id of the prompt, to which the server has nothing to object."""
    with page.expect_response(lambda r: r.url.endswith("/prompt") and r.request.method == "POST") as sent:
        page.get_by_test_id("queue-button").click()
    answer = sent.value.json()
    assert sent.value.status == 200
    assert answer["node_errors"] == {}
    return answer["prompt_id"]


def badges(page) -> list[tuple[str, str]]:
    """(state, text) of the badges on the screen, from left to right."""
    found = [
        (b.bounding_box()["x"], b.get_attribute("data-state"), b.inner_text()) for b in page.locator(".badge").all()
    ]
    return [(state, text) for _, state, text in sorted(found)]


def cells(page) -> list[dict]:
    """The cells of the heatmaps with what is drawn: places in units of cells, coloured or not."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".cells rect")].map((rect) => ({
            ...rect.dataset, x: +rect.getAttribute("x"), y: +rect.getAttribute("y"),
            fill: getComputedStyle(rect).fill,
        }))"""
    )


def shown_cells(page) -> dict[tuple[int, int], tuple[float | None, float | None]]:
    """(layer, step) -> (density, error), None where a cell is blank, as the one heatmap has them."""
    found = cells(page)
    shown = {(int(c["layer"]), int(c["step"])): (_number(c["density"]), _number(c["error"])) for c in found}
    assert len(shown) == len(found)
    return shown


def recorded_cells(run: dict) -> dict[tuple[int, int], tuple[float | None, float | None]]:
    """The same from a run of the report's payload."""
    return {
        (layer, step["number"]): (run["density"][layer][column], run["error"][layer][column])
        for layer in range(run["layers"])
        for column, step in enumerate(run["steps"])
    }


def pairs(boxes: list[dict]) -> Iterator[tuple[dict, dict]]:
    return ((one, other) for place, one in enumerate(boxes) for other in boxes[place + 1 :])


def overlap(one: dict, other: dict) -> bool:
    """Of boxes {x, y, width, height}; half a pixel is rounding."""
    return all(
        one[start] + 0.5 < other[start] + other[size] and other[start] + 0.5 < one[start] + one[size]
        for start, size in (("x", "width"), ("y", "height"))
    )


def inside(inner: dict, outer: dict) -> bool:
    return all(
        outer[start] - 0.5 <= inner[start] and inner[start] + inner[size] <= outer[start] + outer[size] + 0.5
        for start, size in (("x", "width"), ("y", "height"))
    )


def _changed(node: dict, values: dict | None) -> dict:
    if values is None:
        return node
    named = {**node["widgets_values_named"], **values}
    return {**node, "widgets_values_named": named, "widgets_values": list(named.values())}


def _number(text: str) -> float | None:
    return float(text) if text else None
