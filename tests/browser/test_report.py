"""The report on its node: every cell of the heatmap is a cell of the record."""

import pytest

from dit_accel.accel.report.scale import GREEN_BLUE, PEACH_PURPLE, Scale, round_top
from dit_accel.tests.support.browsing import cells, recorded_cells, shown_cells

pytestmark = pytest.mark.browser


def add(page, payload: dict | None = None) -> None:
    """A report node, executed with this payload."""
    page.evaluate(
        """async (payload) => {
            app.canvas.ds.reset();
            window.report = LiteGraph.createNode("DitAccelReport");
            report.pos = [100, 120];
            app.graph.add(report);
            await new Promise((done) => setTimeout(done, 400));
            if (payload) report.onExecuted({ dit_accel_report: [payload] });
            await new Promise((done) => setTimeout(done, 400));
        }""",
        payload,
    )


def test_every_cell_is_a_cell_of_the_record(either, payload):
    content = payload()
    run = content["runs"][0]
    # A run that starts in the middle of a schedule, as in the second of two samplers.
    for step in run["steps"]:
        step["number"] += 5
    add(either, content)
    shown = shown_cells(either)
    assert len(shown) == 120 and shown == recorded_cells(run)
    assert all((c["y"], c["x"] + 5) == (int(c["layer"]), int(c["step"])) for c in cells(either))


def test_the_switch_shows_errors_and_leaves_blank_what_was_not_sampled(either, payload):
    content = payload()
    add(either, content)
    assert all(c["fill"] != "rgba(0, 0, 0, 0)" for c in cells(either))
    either.get_by_role("button", name="error").click()
    found = cells(either)
    blank = {(c["layer"], c["step"]) for c in found if c["fill"] == "rgba(0, 0, 0, 0)"}
    assert blank == {(c["layer"], c["step"]) for c in found if c["error"] == ""}
    assert 0 < len(blank) < len(found)
    # The next round number above the largest, which is just below 0.08.
    assert either.locator(".legend").inner_text().split() == ["error", "0", "0.1"]
    either.get_by_role("button", name="density").click()
    assert all(c["fill"] != "rgba(0, 0, 0, 0)" for c in cells(either))


def test_the_colours_are_those_of_the_picture(page, payload):
    content = payload(layers=1, steps=5)
    densities, errors = [0.0, 0.2, 0.55, 0.9, 1.0], [0.001, 0.004, 0.012, 0.019, 0.0]
    content["runs"][0].update(density=[densities], error=[errors])
    add(page, content)

    def rgb(colour: tuple) -> str:
        return "rgb({}, {}, {})".format(*colour)

    density, error = Scale(GREEN_BLUE), Scale(PEACH_PURPLE, round_top(errors))
    assert [c["fill"] for c in cells(page)] == [rgb(density.colour(value)) for value in densities]
    page.get_by_role("button", name="error").click()
    assert [c["fill"] for c in cells(page)] == [rgb(error.colour(value)) for value in errors]


def test_hovering_a_cell_shows_its_numbers(either, payload):
    content = payload()
    run = content["runs"][0]
    add(either, content)
    words = either.locator(".cell")
    assert words.inner_text() == "Point at a cell to see its numbers."
    either.locator('[data-layer="3"][data-step="5"]').hover()
    density, error = (float(f"{run[name][3][5]:.3g}") for name in ("density", "error"))
    assert words.inner_text() == f"layer 3, step 5 (sigma 0.5, 1.25 s) · density {density} · error {error}"
    either.locator('[data-layer="4"][data-step="1"]').hover()
    assert words.inner_text() == (
        "layer 4, step 1 (sigma 0.9, 1.25 s) · density 1 · error not measured · dense: outside the budget's window"
    )
    either.get_by_role("button", name="error").click()
    either.locator('[data-layer="4"][data-step="1"]').hover()
    assert words.inner_text().startswith("layer 4, step 1 ")
    either.mouse.move(1500, 900)
    assert words.inner_text() == "Point at a cell to see its numbers."


def test_the_bar_shows_where_the_time_went(page, payload):
    content = payload()
    content["runs"][0]["times"]["dense"] = 0.0
    add(page, content)
    assert page.locator(".times > span").all_inner_texts() == [
        "planning 1.2 s (6 %)",
        "kernel 5.3 s (25 %)",
        "other layers 7.7 s (37 %)",
        "dense steps 6.6 s (32 %)",
        "guard 0.04 s (under 1 %)",
    ]
    widths = {p.get_attribute("data-time"): p.bounding_box()["width"] for p in page.locator(".bar > div").all()}
    assert list(widths) == ["planning", "kernel", "other", "dense_steps", "guard"]
    assert widths["kernel"] / sum(widths.values()) == pytest.approx(5.3 / 20.84, abs=0.01)


def test_the_bar_of_a_short_run_is_as_long_as_any(page, payload):
    content = payload()
    content["runs"][0]["times"] = {"planning": 0.1, "kernel": 0.2}
    add(page, content)
    bar, *pieces = (e.bounding_box()["width"] for e in page.locator(".bar, .bar > div").all())
    assert sum(pieces) == pytest.approx(bar, abs=1)


def test_reasons_guard_and_advice_are_listed(page, payload):
    content = payload()
    add(page, content)
    assert page.locator(".reasons li").all_inner_texts() == [
        "cross-attention: 120",
        "outside the budget's window: 24",
        "block kept dense: 8",
    ]
    assert page.locator(".guard li").all_inner_texts() == content["runs"][0]["guard"]
    assert page.locator(".advice li").all_inner_texts() == content["advice"]


def test_two_runs_have_a_heatmap_each(page, payload):
    content = payload()
    content["runs"].append({**payload(4, 6)["runs"][0], "title": "the second expert"})
    add(page, content)
    assert page.locator(".run .head .title").all_inner_texts()[1] == "the second expert"
    assert [m.locator("rect").count() for m in page.locator(".cells").all()] == [120, 24]
    page.get_by_role("button", name="error").nth(1).click()
    assert page.locator('[data-measure="error"][aria-pressed="true"]').count() == 1


def test_a_run_of_which_no_cell_is_known_has_no_heatmap(page, payload):
    content = payload()
    content["runs"][0].update(layers=0, steps=[], density=[], error=[], mass=[])
    add(page, content)
    assert page.locator(".cells").count() == 0
    assert page.locator(".title").first.inner_text() == content["runs"][0]["title"]
    assert page.locator(".reasons li").count() == 3


def test_a_report_without_a_run_shows_its_words(page):
    add(page, {"runs": [], "advice": [], "text": "No run made these samples."})
    assert page.locator(".report").inner_text() == "No run made these samples."


def test_a_run_that_measured_nothing_is_blank(page, payload):
    content = payload(3, 4)
    content["runs"][0].update(error=[[None] * 4] * 3, times=dict.fromkeys(content["runs"][0]["times"], 0.0))
    add(page, content)
    page.get_by_role("button", name="error").click()
    assert all(c["fill"] == "rgba(0, 0, 0, 0)" for c in cells(page))
    assert page.locator(".legend").inner_text() == "no error was measured"
    assert page.locator(".bar").count() == 0


def test_a_large_model_and_a_long_schedule_fit_a_node_of_normal_width(either, payload):
    add(either, payload(60, 50))
    boxes = either.evaluate(
        """() => [...document.querySelectorAll(".cells, .cells rect")].map((e) => {
            const { x, y, right, bottom } = e.getBoundingClientRect();
            return [x, y, right, bottom];
        })"""
    )
    (left, top, right, bottom), *rects = boxes
    assert len(rects) == 3000 and right - left > 250 and bottom - top <= 241
    assert all(x >= left and y >= top and r <= right + 1 and b <= bottom + 1 for x, y, r, b in rects)
    # Each can be pointed at.
    assert all(r - x > 4 and b - y > 3 for x, y, r, b in rects)


def test_restored_outputs_bring_the_report_back_and_a_reload_does_not(page, payload):
    add(page, payload())
    hint = page.get_by_text("The report appears here after a run.")
    assert hint.count() == 0
    page.evaluate(
        """async () => {
            await app.loadGraphData(app.graph.serialize());
            await new Promise((done) => setTimeout(done, 400));
        }"""
    )
    assert hint.count() == 1 and page.locator(".cells").count() == 0
    page.evaluate(
        "(payload) => { app.nodeOutputs = { [app.graph.nodes[0].id]: { dit_accel_report: [payload] } }; }", payload()
    )
    assert hint.count() == 0 and page.locator(".cells rect").count() == 120
