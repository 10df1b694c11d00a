"""The driver against a stand-in for ComfyUI: what is said when the folder is wrong or the server goes away."""

from pathlib import Path

import pytest

from dit_accel.accel.cli.main import main
from dit_accel.accel.headless.server import Server, ServerDied, find_comfyui, missing_comfyui

# Answers like ComfyUI until a graph comes; then it does what the file `on_prompt` beside it says.
MAIN = """
import http.server, json, os, pathlib, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        exec((pathlib.Path(__file__).parent / "on_prompt").read_text("utf-8"))

port = int(sys.argv[sys.argv.index("--port") + 1])
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
server.serve_forever()
"""
DIES = "print('out of memory', flush=True); os._exit(3)"
ANSWERS_AND_DIES = "self.answer({'prompt_id': 'a', 'node_errors': {}}); self.wfile.flush(); " + DIES
HANGS_UP_AND_DIES = "self.connection.shutdown(2); time.sleep(0.5); " + DIES
HANGS_UP = "print('still here', flush=True); self.close_connection = True"


@pytest.fixture
def standin(tmp_path, monkeypatch):
    """The stand-in's folder, which COMFYUI_PATH names."""
    folder = tmp_path / "standin"
    folder.mkdir()
    (folder / "main.py").write_text(MAIN, "utf-8")
    (folder / "requirements.txt").write_text("", "utf-8")
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    return folder


@pytest.mark.parametrize(
    ("on_prompt", "words"),
    [
        (DIES, r"(?s)ended with code 3.*out of memory"),
        (ANSWERS_AND_DIES, r"(?s)ended with code 3.*out of memory"),
        (HANGS_UP_AND_DIES, r"(?s)ended with code 3.*out of memory"),
        (HANGS_UP, r"(?s)gave no answer \(Remote end closed.*still here"),
    ],
    ids=["dies during the request", "dies during the graph", "hangs up, then dies", "hangs up"],
)
def test_a_server_that_goes_away_is_named_with_its_log(standin, tmp_path, on_prompt, words):
    (standin / "on_prompt").write_text(on_prompt, "utf-8")
    with Server(standin, tmp_path / "base") as server, pytest.raises(ServerDied, match=words):
        server.run({})


def test_the_demo_says_that_its_server_died(standin, tmp_path, capsys):
    pytest.importorskip("av")
    (standin / "on_prompt").write_text(DIES, "utf-8")
    assert main(["demo", "--output", str(tmp_path / "out"), "--frames", "2", "--width", "32"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dit-accel: ComfyUI failed: ComfyUI ended with code 3\n")
    assert "out of memory" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_relative_folder_serves_from_anywhere(standin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMFYUI_PATH", "standin")
    with Server(find_comfyui(), tmp_path / "base") as server:
        assert server.object_info("Nothing") == {}


def test_home_may_be_abbreviated(standin, monkeypatch):
    monkeypatch.setenv("HOME", str(standin.parent))
    monkeypatch.setenv("USERPROFILE", str(standin.parent))
    monkeypatch.setenv("COMFYUI_PATH", "~/standin")
    assert find_comfyui() == standin


def test_a_wrong_path_is_not_asked_for_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMFYUI_PATH", "elsewhere")
    words = f"COMFYUI_PATH: expected a ComfyUI folder with main.py, found {tmp_path / 'elsewhere'}"
    assert find_comfyui() is None
    assert missing_comfyui() == words
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == f"dit-accel: {words}\n"
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert words in out and "no ComfyUI was found" in out


def test_no_path_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert find_comfyui() is None
    assert "set COMFYUI_PATH" in missing_comfyui()
