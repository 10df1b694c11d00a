"""The real frontend in headless Chromium, on a real server with our pack."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dit_accel.accel.comfy.server import Server

PACK = Path(__file__).parents[2]
# Validation wants the files of the example workflow to exist; nothing here gets as far as reading them.
MODEL_FILES = (
    "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors",
    "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "vae/wan_2.1_vae.safetensors",
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
STARTED = "!!window.LiteGraph?.registered_node_types?.DitAccelBudget && !!window.app?.canvas?.graph?.nodes.length"


def _unavailable(reason: str):
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfyui")
    for name in MODEL_FILES:
        file = base / "models" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    # A workflow that runs would take hours in Triton's interpreter.
    with Server(comfyui, base, [PACK], ["--cpu"], {"TRITON_INTERPRET": "0"}) as server:
        # Else the template browser covers the canvas on the first visit.
        server.request("/settings/Comfy.TutorialCompleted", True)
        yield server


@pytest.fixture(scope="session")
def browser():
    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError:
        _unavailable('playwright is not installed: pip install -e ".[browser]"')
    with sync_playwright() as playwright:
        executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        except Error as error:
            _unavailable(f"no Chromium starts: {error}")
        yield browser
        browser.close()


@pytest.fixture
def page(server: Server, browser):
    """A loaded frontend with an empty canvas; an uncaught error in its JavaScript fails the test."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(10_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    page.wait_for_function(STARTED, timeout=90_000)
    # The start-up workflow has come; what follows it is only drawing.
    page.wait_for_timeout(500)
    page.evaluate("app.graph.clear()")
    yield page
    page.close()
    assert not errors
