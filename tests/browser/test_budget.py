"""What the budget node shows of its preset: the dense parts of the schedule, the level between them, and words."""

import pytest

pytestmark = pytest.mark.browser


def add(page, **values) -> None:
    """A budget node, with these values set as a person would set them."""
    page.evaluate(
        """async (values) => {
            app.canvas.ds.reset();
            window.budget = LiteGraph.createNode("DitAccelBudget");
            budget.pos = [100, 150];
            app.graph.add(budget);
            await new Promise((done) => setTimeout(done, 400));
            window.edit = (name, value) => {
                const widget = budget.widgets.find((w) => w.name === name);
                widget.value = value;
                widget.callback(value);
            };
            for (const [name, value] of Object.entries(values)) edit(name, value);
        }""",
        values,
    )


def shown(page) -> dict:
    """What the panel says and draws: shares of the schedule and of the attention mass."""
    return page.evaluate(
        """() => {
            const box = document.querySelector(".schedule").getBoundingClientRect();
            const width = (name) => document.querySelector(`[data-part="${name}"]`).getBoundingClientRect().width;
            const points = document.querySelector(".kept").getAttribute("points").split(" ");
            const heights = points.map((point) => +point.split(",")[1]);
            const round = (x) => Math.round(1000 * x) / 1000;
            return {
                first: round(width("first") / box.width),
                last: round(width("last") / box.width),
                // 40 units high, 1 at 4 and 0 at 40.
                kept: heights.filter((_, i) => i % 2).map((y) => round((40 - y) / 36)),
                words: document.querySelector(".meaning").innerText,
            };
        }"""
    )


def test_a_new_node_shows_auto(either):
    add(either)
    assert shown(either) == {
        "first": 0.2,
        "last": 0,
        "kept": [1, 0.9],
        "words": "auto: few_step for up to 10 steps, else these numbers · dense: first 20 % · block 0",
    }


def test_choosing_a_preset_changes_what_is_shown(page):
    add(page)
    for preset, first, level, words in (
        ("faithful", 0.2, 0.9, "faithful: closest to the dense result · dense: first 20 % · block 0"),
        ("balanced", 0.2, 0.8, "balanced: between faithful and turbo · dense: first 20 % · block 0"),
        ("turbo", 0.3, 0.7, "turbo: most is skipped · dense: first 30 % · block 0"),
        ("few_step", 0.1, 0.9, "few_step: for distilled models · dense: the first step · block 0"),
    ):
        page.evaluate("(preset) => edit('preset', preset)", preset)
        assert shown(page) == {"first": first, "last": 0, "kept": [1, level], "words": words}


def test_the_display_follows_every_number(either):
    add(either, dense_last=0.25, top_p=0.5, max_density=0.4, dense_blocks="0, 3-5")
    assert shown(either) == {
        "first": 0.2,
        "last": 0.25,
        "kept": [1, 0.5, 1],
        "words": "custom: these numbers · at most 40 % of the map · dense: first 20 % · last 25 % · blocks 0, 3-5",
    }


def test_nothing_dense_is_said_and_drawn(page):
    add(page, dense_first=0, dense_blocks="")
    assert shown(page) == {"first": 0, "last": 0, "kept": [0.9], "words": "custom: these numbers · dense: nothing"}


def test_parts_that_overlap_are_said_to_be_wrong(page):
    add(page, dense_first=0.7, dense_last=0.5)
    assert shown(page)["words"] == "dense_first and dense_last: at most 1 together"
    assert page.locator(".meaning.wrong").count() == 1
    page.evaluate("edit('dense_last', 0.3)")
    assert page.locator(".meaning.wrong").count() == 0


def test_a_loaded_node_shows_its_saved_numbers(page):
    add(page, preset="turbo")
    page.evaluate(
        """async () => {
            const saved = app.graph.serialize();
            saved.nodes[0].widgets_values = ["custom", 0.6, 0.1, 1, 0.5, 0.1, "", 0];
            delete saved.nodes[0].widgets_values_named;
            await app.loadGraphData(saved);
            await new Promise((done) => setTimeout(done, 400));
        }"""
    )
    assert shown(page) == {
        "first": 0.5,
        "last": 0.1,
        "kept": [1, 0.6, 1],
        "words": "custom: these numbers · dense: first 50 % · last 10 %",
    }


def test_a_connected_profile_is_named(page):
    add(page)
    page.evaluate(
        """() => {
            const loader = LiteGraph.createNode("DitAccelLoadProfile");
            loader.pos = [600, 150];
            app.graph.add(loader);
            loader.connect(0, budget, budget.inputs.findIndex((input) => input.name === "profile"));
        }"""
    )
    assert "top_p and floor: the profile's" in shown(page)["words"]
    page.evaluate("budget.disconnectInput(budget.inputs.findIndex((input) => input.name === 'profile'))")
    assert "profile" not in shown(page)["words"]
