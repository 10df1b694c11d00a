"""A ComfyUI that is too old loads the pack: what its log says."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from dit_accel.accel.comfy.core_version import OLDEST_CORE
from dit_accel.accel.version import PACK_VERSION

ROOT = Path(__file__).resolve().parents[2]


def sentence(version: str) -> str:
    return f"DiT Accel {PACK_VERSION} needs ComfyUI {OLDEST_CORE} or newer, and this is ComfyUI {version}: update"


@pytest.fixture
def load(comfy, monkeypatch, tmp_path, caplog):
    """Loads the pack with ComfyUI's own loader, under a version; returns whether it loaded, and the log."""
    import comfyui_version

    import nodes

    # The loader's lists as they were.
    for name in ("EXTENSION_WEB_DIRS", "LOADED_MODULE_DIRS", "NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"):
        monkeypatch.setattr(nodes, name, dict(getattr(nodes, name)))
    folder = tmp_path / "dit-accel"
    folder.symlink_to(ROOT)

    def loaded(version: str) -> tuple[bool, list[str]]:
        monkeypatch.setattr(comfyui_version, "__version__", version)
        modules = set(sys.modules)
        try:
            ok = asyncio.run(nodes.load_custom_node(str(folder)))
        finally:
            for name in set(sys.modules) - modules:
                del sys.modules[name]
        return ok, [record.getMessage() for record in caplog.records]

    return loaded


@pytest.fixture
def schema_of_older_cores(comfy, monkeypatch):
    """What a node of ours could declare before ComfyUI knew search_aliases."""
    from comfy_api.latest import io

    class Schema(io.Schema):
        def __init__(
            self,
            node_id,
            display_name=None,
            category="sd",
            inputs=None,
            outputs=None,
            hidden=None,
            description="",
            is_output_node=False,
        ):
            raise AssertionError("a node was declared")

    monkeypatch.setattr(io, "Schema", Schema)


@pytest.mark.parametrize("version", ["0.3.60", "0.32.1", "v0.32.9-4-g1f3a", "0.32"])
def test_an_older_core_logs_both_versions_in_one_sentence(load, schema_of_older_cores, version):
    ok, log = load(version)
    assert not ok
    (line,) = [line for line in log if "DiT Accel" in line]
    assert sentence(version) in line and "\n" not in line
    assert not any("search_aliases" in line or "Traceback" in line for line in log)


def test_a_core_without_entry_points_logs_it_too(load, monkeypatch):
    """Before version 0.3.48 nothing of comfy_api.latest was there, and nothing called comfy_entrypoint."""
    monkeypatch.delitem(sys.modules, "comfy_api.latest")
    ok, log = load("0.3.40")
    assert not ok and any(sentence("0.3.40") in line for line in log)


@pytest.mark.parametrize("version", [OLDEST_CORE, "0.33.0rc1", "0.38.2", "1.0", "unknown"])
def test_the_oldest_and_newer_cores_load_the_pack(load, version):
    ok, log = load(version)
    assert ok and not any("needs ComfyUI" in line for line in log)


def test_the_sentence_names_the_version_that_the_registry_is_told():
    needed = re.search(r'requires-comfyui = ">=(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert needed[1] == OLDEST_CORE
