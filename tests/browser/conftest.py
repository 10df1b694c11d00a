"""The real frontend in headless Chromium, on a real server with our pack."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from dit_accel.accel.headless.server import Server

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


# The frontend's own complaints: files that it tries for, models that it looks up, and one of its start.
NO_FAULT = (
    "Failed to load resource",
    "Connecting to 'https://",
    "Fetch API cannot load https://",
    "ComfyApp graph accessed before initialization",
)


def _is_fault(message) -> bool:
    return message.type == "error" and not message.text.startswith(NO_FAULT)


@contextmanager
def frontend(server: Server, browser, scale: int = 1):
    """A loaded frontend with an empty canvas; an error in its JavaScript or on its console fails the test."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, device_scale_factor=scale)
    page = context.new_page()
    page.set_default_timeout(10_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if _is_fault(message) else None)
    page.goto(server.url)
    page.wait_for_function(STARTED, timeout=90_000)
    # The start-up workflow has come; what follows it is only drawing.
    page.wait_for_timeout(500)
    page.evaluate("app.graph.clear()")
    yield page
    context.close()
    assert not errors


@pytest.fixture
def page(server: Server, browser):
    with frontend(server, browser) as page:
        yield page


@contextmanager
def setting(page, name: str, value):
    """The server remembers settings: the next test wants the old one."""
    before = page.evaluate("(name) => app.extensionManager.setting.get(name)", name)
    change = "([name, value]) => app.extensionManager.setting.set(name, value)"
    page.evaluate(change, [name, value])
    try:
        yield
    finally:
        page.evaluate(change, [name, before])


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def either(page, request):
    """The page with each of the frontend's two ways to draw nodes."""
    with setting(page, "Comfy.VueNodes.Enabled", request.param):
        page.wait_for_timeout(300)
        yield page


@pytest.fixture(params=[("dark", 1), ("light", 1), ("dark", 2), ("light", 2)], ids=lambda look: f"{look[0]}-{look[1]}x")
def themed(server, browser, request):
    """A page in each theme, at the resolution of an ordinary and of a fine screen."""
    theme, scale = request.param
    with (
        frontend(server, browser, scale) as page,
        setting(page, "Comfy.ColorPalette", theme),
        # Whatever the test makes of it.
        setting(page, "Comfy.VueNodes.Enabled", False),
    ):
        page.wait_for_timeout(300)
        yield page


@pytest.fixture
def payload():
    """Makes what the report node hands to the browser, of a run with so many layers and steps."""
    return _payload


def _payload(layers: int = 12, steps: int = 10) -> dict:
    random = Random(0)
    window = "outside the budget's window"
    # Block 0 and the first two steps are dense; errors are sampled in every third step.
    sparse = [[layer > 0 and step > 1 for step in range(steps)] for layer in range(layers)]

    def sampled(low: float, high: float) -> list:
        return [
            [random.uniform(low, high) if on and n % 3 == 2 else None for n, on in enumerate(row)] for row in sparse
        ]

    run = {
        "title": "svg2 on WanModel, budget auto (faithful)",
        "layers": layers,
        "steps": [
            {"number": n, "sigma": 1 - n / steps, "seconds": 1.25, "dense": window if n < 2 else None}
            for n in range(steps)
        ],
        "density": [[random.uniform(0.15, 0.6) if on else 1.0 for on in row] for row in sparse],
        "error": sampled(0.01, 0.08),
        "mass": sampled(0.8, 1.0),
        "times": {"planning": 1.2, "kernel": 5.3, "dense": 0.4, "other": 7.7, "dense_steps": 6.6, "guard": 0.04},
        "dense": {"cross-attention": 120, window: 24, "block kept dense": 8},
        "guard": ["layer 3: error 0.071 where 0.05 was promised, density raised from step 8"],
    }
    advice = [
        "layers 0-1 never go below 0.6: list them as dense",
        "one dense step costs 31 % of the run: try dense_first 0.1",
    ]
    return {"runs": [run], "advice": advice, "text": "the report in words"}
