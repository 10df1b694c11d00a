"""The pack registers, from a folder whose name is no Python name, and its contract only grows."""

import json
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).parent / "object_info.json"
FILE_LISTS = {"conditioning_name", "model_name", "profile_name", "vae_name"}
CONTRACT = json.loads(SNAPSHOT.read_text())


def test_nothing_failed_to_import(server):
    log = server.log_since(0)
    assert "dit accel-pack" in log
    for trouble in ("IMPORT FAILED", "Cannot import", "Error while calling comfy_entrypoint"):
        assert trouble not in log


def test_no_node_is_missing_from_the_snapshot(server):
    """A new node is added to object_info.json in the change that adds it."""
    registered = {
        name
        for name, info in server.request("/object_info").items()
        if info["python_module"] == "custom_nodes.dit accel-pack"
    }
    assert registered == set(CONTRACT)


@pytest.mark.parametrize("node", CONTRACT)
def test_contract(server, node):
    """Names, types, order, defaults and limits are forever. A COMBO may get further values and a node
    further inputs, optional and last: then this snapshot is extended, never changed."""
    assert described(server.object_info(node)) == CONTRACT[node]


@pytest.mark.parametrize("node", CONTRACT)
def test_category_and_help(server, node):
    info = server.object_info(node)
    assert info["category"].startswith("DiT Accel/")
    assert info["description"]
    for section in ("required", "optional"):
        for name, (_, *options) in info["input"].get(section, {}).items():
            assert options and options[0].get("tooltip"), f"{name} has no tooltip"


def described(info: dict) -> dict:
    """What a saved graph depends on. A list of files is what lies on the machine, no contract."""
    kept = {"default", "min", "max", "step", "options"}
    return {
        "inputs": [
            {
                "name": name,
                "optional": section == "optional",
                "type": kind,
                **{
                    key: value
                    for key, value in (options[0] if options else {}).items()
                    if key in kept - ({"options"} if name in FILE_LISTS else set())
                },
            }
            for section in ("required", "optional")
            for name, (kind, *options) in info["input"].get(section, {}).items()
        ],
        "outputs": info["output"],
    }
