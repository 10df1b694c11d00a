"""The headless server itself: where it finds ComfyUI, and that no failure passes for a success."""

from pathlib import Path

import pytest

from dit_accel.accel.headless import server as module
from dit_accel.accel.headless.server import GraphRejected, Server, ServerDied, find_comfyui
from dit_accel.tests.support.graphs import Graph, nonce


def comfyui_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


def test_find_comfyui(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert find_comfyui() is None

    at_home = comfyui_in(tmp_path / "home" / "comfy" / "ComfyUI")
    assert find_comfyui() == at_home

    around = comfyui_in(tmp_path / "around")
    monkeypatch.setattr(module, "__file__", str(around / "custom_nodes" / "pack" / "accel" / "comfy" / "server.py"))
    assert find_comfyui() == around

    named = comfyui_in(tmp_path / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert find_comfyui() == named

    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nothing"))
    assert find_comfyui() is None


def test_a_server_that_dies_shows_its_log(tmp_path):
    broken = comfyui_in(tmp_path / "broken")
    (broken / "main.py").write_text("import sys; print('no such module'); sys.exit(3)")
    with pytest.raises(ServerDied, match=r"(?s)code 3.*no such module"), Server(broken, tmp_path / "base"):
        pass


def test_a_dropped_output_is_a_rejection(server):
    """ComfyUI would run the good half of this graph and answer 200."""
    graph = Graph()
    graph.add("StandinState", nonce=nonce())
    graph.add("StandinState")
    with pytest.raises(GraphRejected, match="nonce") as rejection:
        server.post(graph)
    assert list(rejection.value.node_errors) == ["n1"]


def test_a_graph_that_takes_too_long(server, play):
    prompt = play.hold()
    with pytest.raises(TimeoutError):
        server.wait(prompt, timeout=0.2)
    server.cancel(prompt)
    with pytest.raises(module.GraphFailed, match="interrupted"):
        server.wait(prompt, timeout=30)
