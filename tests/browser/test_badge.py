"""The badge of the sparse attention node: it says what the server's messages say."""

import json
import re
from pathlib import Path

import pytest

from dit_accel.accel.attention.account.run_summary import parse_line
from dit_accel.accel.attention.reasons import NOT_SELF_ATTENTION
from dit_accel.tests.support.browsing import badges, changed, open_workflow, press_run

pytestmark = pytest.mark.browser

SMALL_MODEL = Path(__file__).parents[2] / "workflows" / "small_video_model.json"
RUNNING = {
    "state": "running",
    "sparse": 30,
    "dense": 90,
    "density": 0.31,
    "share": 0.25,
    "reason": None,
    "text": "density 0.31, 25 % of calls sparse",
}
INACTIVE = {
    "state": "done",
    "sparse": 0,
    "dense": 120,
    "density": None,
    "share": 0.0,
    "reason": "fewer than min_tokens",
    "text": "inactive: fewer than min_tokens",
}


def add_nodes(page, count: int = 1) -> list[str]:
    """Sparse attention nodes side by side; their ids."""
    return page.evaluate(
        """async (count) => {
            app.canvas.ds.reset();
            const nodes = [...Array(count)].map((_, i) => {
                const node = LiteGraph.createNode("DitAccelSparseAttention");
                node.pos = [100 + 400 * i, 150];
                return app.graph.add(node);
            });
            await new Promise((done) => setTimeout(done, 400));
            return nodes.map((node) => String(node.id));
        }""",
        count,
    )


def send(page, node: str, message: dict) -> None:
    page.evaluate(
        "(detail) => comfyAPI.api.api.dispatchCustomEvent('dit_accel.run', detail)", {"node": node, **message}
    )


def test_a_badge_shows_the_messages_of_its_node_alone(either):
    first, second = add_nodes(either, 2)
    assert badges(either) == [("idle", "not run yet")] * 2
    send(either, second, RUNNING)
    assert badges(either) == [("idle", "not run yet"), ("running", RUNNING["text"])]
    send(either, second, {**RUNNING, "state": "done", "text": "density 0.29, 75 % of calls sparse"})
    send(either, first, INACTIVE)
    assert badges(either) == [("inactive", INACTIVE["text"]), ("done", "density 0.29, 75 % of calls sparse")]


def test_the_counts_are_in_the_tooltip(page):
    (node,) = add_nodes(page)
    send(page, node, RUNNING)
    assert "30 sparse calls, 90 dense" in page.locator(".badge").get_attribute("title")


def test_messages_for_nodes_that_are_gone_or_of_another_kind_do_nothing(page):
    first, second = add_nodes(page, 2)
    page.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", first)
    budget = page.evaluate("String(app.graph.add(LiteGraph.createNode('DitAccelBudget')).id)")
    page.wait_for_timeout(300)
    for node in (first, budget, "99", f"{second}:1", "99:1"):
        send(page, node, RUNNING)
    assert badges(page) == [("idle", "not run yet")]


def test_a_node_in_a_subgraph_in_a_subgraph_gets_its_messages(page):
    (node,) = add_nodes(page)
    path = page.evaluate(
        """(id) => {
            const node = app.graph.getNodeById(id);
            const { node: inner } = app.graph.convertToSubgraph(new Set([node]));
            const { node: outer } = app.graph.convertToSubgraph(new Set([inner]));
            const nested = outer.subgraph.nodes[0];
            app.canvas.openSubgraph(outer.subgraph, outer);
            app.canvas.openSubgraph(nested.subgraph, nested);
            return [outer.id, nested.id, nested.subgraph.nodes[0].id].join(":");
        }""",
        node,
    )
    page.wait_for_timeout(500)
    send(page, path, RUNNING)
    page.evaluate("app.canvas.ds.reset()")
    page.wait_for_timeout(300)
    assert badges(page) == [("running", RUNNING["text"])]


def test_after_a_run_the_badge_says_what_the_log_says(page, server):
    page.evaluate(
        """() => {
            window.messages = [];
            comfyAPI.api.api.addEventListener("dit_accel.run", ({ detail }) => messages.push(detail));
        }"""
    )
    # With a seed of its own: what another test has sampled would come from the cache.
    open_workflow(page, changed(json.loads(SMALL_MODEL.read_text("utf-8")), {"KSampler": {"seed": 8}}))
    mark = server.mark()
    server.wait(press_run(page), timeout=300)
    page.wait_for_function("messages.at(-1)?.state === 'done'")
    messages = page.evaluate("messages")
    last = messages[-1]
    assert badges(page) == [("done", last["text"])]
    assert len(messages) > 2 and {message["state"] for message in messages[:-1]} == {"running"}

    log = parse_line(server.log_since(mark))
    dense = sum(count for reason, count in log["dense"].items() if reason not in NOT_SELF_ATTENTION)
    assert (last["sparse"], last["dense"]) == (log["sparse"], dense)
    assert last["density"] == pytest.approx(log["density"], abs=5e-4)
    density, share = map(float, re.findall(r"\d+(?:\.\d+)?", last["text"]))
    assert density == pytest.approx(log["density"], abs=0.006)
    assert share / 100 == pytest.approx(last["share"], abs=0.006)
