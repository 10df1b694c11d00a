"""What a person sees of our nodes in the frontend."""

import json
import shutil
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from dit_accel.accel.attention.account.run_summary import parse_line
from dit_accel.tests.support.browsing import open_workflow, press_run

pytestmark = pytest.mark.browser

WORKFLOWS = Path(__file__).parents[2] / "workflows"
WORKFLOW = WORKFLOWS / "wan2.1_t2v_sparse_attention.json"
SMALL_MODEL = WORKFLOWS / "small_video_model.json"
DCAE = WORKFLOWS / "dcae_reconstruction.json"
BUDGET = "Attention Budget (DiT Accel)"
SPARSE = "Sparse Attention (DiT Accel)"


def add_through_search(page, title: str, x: int = 700, y: int = 300) -> None:
    open_search(page, x, y)
    page.keyboard.type(title)
    page.get_by_test_id("result-item").filter(has_text=title).first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_function("app.graph.nodes.length > 0")
    page.wait_for_timeout(300)
    # The node hangs at the pointer until it is placed.
    page.mouse.click(x, y)
    page.wait_for_timeout(500)


def open_search(page, x: int, y: int) -> None:
    # A busy machine can tear a double click apart into two clicks.
    for _ in range(4):
        page.mouse.dblclick(x, y)
        page.wait_for_timeout(1000)
        if page.locator("input:focus").count():
            return
    raise AssertionError("a double click on the canvas opens no node search")


def values(page) -> dict:
    return page.evaluate(
        """() => {
            const node = app.graph.nodes.find((n) => n.type === "DitAccelBudget");
            const saved = node.widgets.filter((w) => w.serialize !== false);
            return Object.fromEntries(saved.map((w) => [w.name, w.value]));
        }"""
    )


def widget_place(page, name: str) -> tuple[float, float]:
    """Where a widget of the budget node is on the screen."""
    return page.evaluate(
        """(name) => {
            const node = app.graph.nodes.find((n) => n.type === "DitAccelBudget");
            const widget = node.widgets.find((w) => w.name === name);
            return app.canvasPosToClientPos([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10]);
        }""",
        name,
    )


def type_into(page, name: str, text: str) -> None:
    page.mouse.dblclick(*widget_place(page, name))
    field = page.locator(".graphdialog input")
    field.fill(text)
    field.press("Enter")
    page.wait_for_timeout(300)


def choose(page, name: str, value: str) -> None:
    page.mouse.click(*widget_place(page, name))
    page.locator(".litecontextmenu .litemenu-entry", has_text=value).first.click()
    page.wait_for_timeout(300)


@pytest.mark.parametrize(
    ("title", "sentence"),
    [(BUDGET, "the numbers below it are then only shown"), (SPARSE, "Put the node between the model loader")],
    ids=["budget", "sparse"],
)
def test_a_node_is_found_and_added_and_its_help_opens(page, title, sentence):
    add_through_search(page, title)
    assert page.evaluate("app.graph.nodes.map((n) => n.title)") == [title]
    page.get_by_test_id("info-button").click()
    heading = page.get_by_role("heading", name=title, level=1)
    heading.wait_for(timeout=10_000)
    assert page.get_by_text(sentence).first.is_visible()


def test_a_new_budget_shows_the_numbers_of_its_preset(page):
    add_through_search(page, BUDGET)
    assert values(page)["preset"] == "auto"
    assert values(page)["floor"] == 0.1


@pytest.mark.parametrize(("name", "text", "value"), [("top_p", "0.55", 0.55), ("dense_blocks", "0, 3", "0, 3")])
def test_editing_a_number_switches_the_preset_to_custom(page, name, text, value):
    add_through_search(page, BUDGET)
    before = values(page)
    type_into(page, name, text)
    assert values(page) == {**before, name: value, "preset": "custom"}


def test_editing_a_number_in_the_vue_renderer_switches_the_preset_too(page):
    page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    try:
        add_through_search(page, BUDGET)
        before = values(page)
        field = page.locator("[data-node-id]").get_by_role("spinbutton").first
        field.fill("0.55")
        field.press("Enter")
        page.wait_for_timeout(300)
        assert values(page) == {**before, "top_p": 0.55, "preset": "custom"}
    finally:
        page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def test_confirming_a_number_unchanged_keeps_the_preset(page):
    add_through_search(page, BUDGET)
    before = values(page)
    type_into(page, "top_p", "0.9")
    assert values(page) == before


def test_choosing_a_preset_shows_its_numbers(page):
    add_through_search(page, BUDGET)
    type_into(page, "top_p", "0.55")
    choose(page, "preset", "turbo")
    assert values(page) == {
        "preset": "turbo",
        "top_p": 0.7,
        "floor": 0.03,
        "max_density": 1,
        "dense_first": 0.3,
        "dense_last": 0,
        "dense_blocks": "0",
        "min_tokens": 12288,
    }


def test_loading_a_saved_workflow_changes_nothing(page):
    """A preset whose saved numbers differ from ours, as an older version may have left it."""
    saved = json.loads(WORKFLOW.read_text("utf-8"))
    (budget,) = (node for node in saved["nodes"] if node["type"] == "DitAccelBudget")
    budget["widgets_values"] = ["balanced", 0.61, 0.2, 0.9, 0.1, 0.1, "2", 5]
    budget.pop("widgets_values_named", None)
    page.evaluate("(workflow) => app.loadGraphData(workflow)", saved)
    page.wait_for_timeout(500)
    assert list(values(page).values()) == budget["widgets_values"]


def test_saved_values_come_back_into_the_widgets_that_they_were_saved_from(either):
    """They are saved by place, and some of the inputs are optional: they must not come behind others."""
    saved = json.loads(WORKFLOW.read_text("utf-8"))
    names = {
        "DitAccelSparseAttention": ("pattern", "precision", "token_order", "guard", "fallback"),
        "DitAccelBudget": (
            *("preset", "top_p", "floor", "max_density"),
            *("dense_first", "dense_last", "dense_blocks", "min_tokens"),
        ),
    }
    values = {
        "DitAccelSparseAttention": ["radial", "16-bit", "morton", "off", "error"],
        "DitAccelBudget": ["custom", 0.61, 0.2, 0.9, 0.1, 0.15, "2", 5],
    }
    for node in saved["nodes"]:
        if node["type"] in values:
            node["widgets_values"] = values[node["type"]]
            node.pop("widgets_values_named", None)
    open_workflow(either, saved)
    shown = either.evaluate(
        """(types) => Object.fromEntries(app.graph.nodes.filter((n) => types.includes(n.type)).map((node) => [
            node.type,
            node.widgets.filter((w) => w.serialize !== false).map((w) => [w.name, w.value]),
        ]))""",
        list(values),
    )
    assert shown == {node: [list(pair) for pair in zip(names[node], values[node], strict=True)] for node in values}
    prompt = either.evaluate("async () => (await app.graphToPrompt()).output")
    posted = {node["class_type"]: node["inputs"] for node in prompt.values()}
    for node in values:
        assert {name: posted[node][name] for name in names[node]} == dict(zip(names[node], values[node], strict=True))


def open_and_queue(page, workflow: Path) -> str:
    """The prompt's id."""
    open_workflow(page, json.loads(workflow.read_text("utf-8")))
    return press_run(page)


def test_the_example_workflow_opens_and_queues_a_valid_prompt(page, server):
    server.cancel(open_and_queue(page, WORKFLOW))


def test_the_small_models_workflow_runs_as_it_is(page, server):
    mark = server.mark()
    entry = server.wait(open_and_queue(page, SMALL_MODEL), timeout=300)
    (video,) = (saved for output in entry["outputs"].values() for saved in output.get("images", []))
    file = server.base / "output" / video["subfolder"] / video["filename"]
    assert file.suffix == ".mp4" and file.stat().st_size > 5000
    log = parse_line(server.log_since(mark))
    assert log["sparse"] > 0 and log["density"] < 0.9


def test_the_autoencoders_workflow_runs(page, server):
    """With a tiny autoencoder under the published one's name."""
    (name,) = (
        node["widgets_values"][0]
        for node in json.loads(DCAE.read_text("utf-8"))["nodes"]
        if node["type"] == "DitAccelLoadDCAE"
    )
    folders = server.base / "models" / "vae", server.base / "input"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parents[1] / "golden" / "dcae_mit_sana_like.safetensors", folders[0] / name)
    Image.new("RGB", (96, 64), "teal").save(folders[1] / "example.png")
    # As the R key does.
    page.evaluate("app.refreshComboInNodes()")
    entry = server.wait(open_and_queue(page, DCAE), timeout=120)
    (saved,) = (image for output in entry["outputs"].values() for image in output.get("images", []))
    with Image.open(server.base / "output" / saved["subfolder"] / saved["filename"]) as picture:
        assert picture.size == (96, 64)


@pytest.mark.parametrize("workflow", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_every_example_is_in_the_template_browser(server, workflow):
    names = [name for group in server.request("/workflow_templates").values() for name in group]
    assert workflow.stem in names


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("small_video_model*.json")), ids=lambda path: path.stem)
def test_the_small_models_workflows_have_pictures(server, file):
    (folder,) = (folder for folder, names in server.request("/workflow_templates").items() if file.stem in names)
    with urllib.request.urlopen(f"{server.url}/api/workflow_templates/{folder}/{file.stem}.jpg") as answer:
        picture = answer.read()
    assert picture == file.with_suffix(".jpg").read_bytes()
    assert picture.startswith(b"\xff\xd8") and len(picture) < 200_000


@pytest.mark.parametrize("workflow", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_say_which_pack_their_nodes_come_from(workflow):
    nodes = json.loads(workflow.read_text("utf-8"))["nodes"]
    ours = [node for node in nodes if node["type"].startswith("DitAccel")]
    assert ours
    assert all(node["properties"]["cnr_id"] == "dit-accel" and node["properties"]["ver"] for node in ours)
