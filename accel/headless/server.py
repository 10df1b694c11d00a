"""A headless ComfyUI in a process of its own, driven over its HTTP API."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .embedded import device_arguments

Graph = Mapping[str, Mapping[str, Any]]

START_SECONDS = 300.0
RUN_SECONDS = 600.0
_STOP_SECONDS = 10.0
_END_SECONDS = 2.0
_POLL_SECONDS = 0.05
_TAIL_LINES = 40

# A proxy from the environment must not stand between us and our own machine.
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerDied(RuntimeError):  # noqa: N818
    """The process ended, or did not answer in time; the message holds the end of its log."""


class GraphRejected(RuntimeError):  # noqa: N818
    """The server refused a graph, wholly or for some outputs. node_errors: node id -> what is wrong."""

    def __init__(self, message: str, node_errors: Mapping[str, Any]) -> None:
        super().__init__(f"{message}: {json.dumps(node_errors, indent=1)}")
        self.node_errors = node_errors


class GraphFailed(RuntimeError):  # noqa: N818
    """A node raised, or the run was interrupted. exception_type is the name of what was raised there."""

    def __init__(self, node_id: str, node_type: str, exception_type: str, message: str) -> None:
        super().__init__(f"{node_type} (node {node_id}): {exception_type}: {message}")
        self.node_id = node_id
        self.node_type = node_type
        self.exception_type = exception_type
        self.message = message


def find_comfyui() -> Path | None:
    """The ComfyUI folder: COMFYUI_PATH, else the one whose custom_nodes/ holds this pack, else
    ~/comfy/ComfyUI; None where there is none, or where COMFYUI_PATH is set and holds none."""
    pack = Path(__file__).parents[2]
    if os.environ.get("COMFYUI_PATH"):
        candidates = [_named_comfyui()]
    elif pack.parent.name == "custom_nodes":
        candidates = [pack.parents[1], Path.home() / "comfy" / "ComfyUI"]
    else:
        candidates = [Path.home() / "comfy" / "ComfyUI"]
    return next((path for path in candidates if (path / "main.py").is_file()), None)


def missing_comfyui() -> str:
    """What to tell a person for whom `find_comfyui` finds none."""
    if os.environ.get("COMFYUI_PATH"):
        return f"COMFYUI_PATH: expected a ComfyUI folder with main.py, found {_named_comfyui()}"
    return "no ComfyUI found: set COMFYUI_PATH to its folder, or put one at ~/comfy/ComfyUI"


def _named_comfyui() -> Path:
    # Absolute, since the server runs in a folder of its own.
    return Path(os.environ["COMFYUI_PATH"]).expanduser().absolute()


class Server:
    """`with Server(comfyui, base, [pack]) as server: server.run(graph)`, graphs in API format.

    comfyui may be read-only: models, input, output, custom_nodes and the log lie in base. packs are the
    folders that are linked into base/custom_nodes. arguments and environment are added to the command line
    and to this process's environment.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        packs: Sequence[Path] = (),
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.base = base
        self.log = base / "comfyui.log"
        self.url = ""
        self._comfyui = comfyui
        self._packs = packs
        self._arguments = arguments
        self._environment = environment or {}
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        custom_nodes = self.base / "custom_nodes"
        custom_nodes.mkdir(parents=True, exist_ok=True)
        for pack in self._packs:
            _link(custom_nodes / pack.name, pack.absolute())
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(self._comfyui / "main.py"), "--port", str(port)]
        command += ["--listen", "127.0.0.1", "--disable-auto-launch", "--disable-api-nodes", "--log-stdout"]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += [*device_arguments(), *self._arguments]
        environment = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", **self._environment}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.base,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._await_start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def post(self, graph: Graph) -> str:
        """Queues a graph and returns its prompt id.

        Raises GraphRejected when any node is at fault: the server would run the other outputs and say 200.
        """
        try:
            answer = self.request("/prompt", {"prompt": graph})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            answer = json.load(error)
            raise GraphRejected(answer["error"]["message"], answer["node_errors"]) from None
        if answer["node_errors"]:
            self.cancel(answer["prompt_id"])
            raise GraphRejected("some outputs were dropped", answer["node_errors"])
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = RUN_SECONDS) -> dict[str, Any]:
        """The history entry of a finished graph; `outputs` in it holds each output node's `ui` results.

        Raises GraphFailed, TimeoutError after `timeout` seconds, or ServerDied.
        """
        for _ in self._polls(timeout):
            entry = self.request(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                _raise_failure(entry["status"]["messages"])
                return entry
        raise TimeoutError(f"graph {prompt_id} still runs after {timeout:.0f} s\n{self.log_tail()}")

    def run(self, graph: Graph, timeout: float = RUN_SECONDS) -> dict[str, Any]:
        """`post` and `wait`."""
        return self.wait(self.post(graph), timeout)

    def interrupt(self) -> None:
        """Stops the graph that runs now; its `wait` raises GraphFailed."""
        self.request("/interrupt", {})

    def cancel(self, prompt_id: str) -> None:
        """Takes a graph out of the queue, or stops it if it runs already."""
        self.request("/queue", {"delete": [prompt_id]})
        self.request("/interrupt", {"prompt_id": prompt_id})

    def object_info(self, node: str) -> dict[str, Any]:
        """The node's description as the frontend gets it; empty for an unknown node."""
        return self.request(f"/object_info/{node}").get(node, {})

    def mark(self) -> int:
        """The present end of the log, for `log_since`."""
        return self.log.stat().st_size

    def log_since(self, mark: int) -> str:
        """What was logged after `mark`."""
        with self.log.open("rb") as log:
            log.seek(mark)
            return log.read().decode("utf-8", "replace")

    def log_tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log_since(0).splitlines()[-_TAIL_LINES:])

    def request(self, path: str, body: Mapping[str, Any] | None = None, timeout: float = 60.0) -> Any:
        """GET, or POST of a JSON body; the decoded JSON answer, None where the answer is empty.

        Raises urllib.error.HTTPError for a refusal, and ServerDied where no answer came.
        """
        try:
            return self._send(path, body, timeout)
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            # The connection breaks a moment before the process has ended.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
            raise self._death(f"ComfyUI gave no answer ({error})") from error

    def _send(self, path: str, body: Mapping[str, Any] | None, timeout: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with _HTTP.open(request, timeout=timeout) as response:
            text = response.read()
        return json.loads(text) if text else None

    def _await_start(self) -> None:
        for _ in self._polls(START_SECONDS):
            with contextlib.suppress(OSError):
                self._send("/system_stats", None, timeout=5.0)
                return
        raise self._death(f"ComfyUI gave no answer within {START_SECONDS:.0f} s")

    def _polls(self, timeout: float) -> Iterator[None]:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._death()
            yield
            time.sleep(_POLL_SECONDS)

    def _death(self, otherwise: str = "") -> ServerDied:
        """With the exit code of the process, or for one that still lives with the words `otherwise`."""
        code = self._process.poll()
        cause = otherwise if code is None else f"ComfyUI ended with code {code}"
        return ServerDied(f"{cause}\n{self.log_tail()}")


def _raise_failure(messages: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    for event, data in messages:
        if event == "execution_interrupted":
            kind, message = "InterruptProcessingException", "interrupted"
        elif event == "execution_error":
            kind, message = data["exception_type"], data["exception_message"].strip()
        else:
            continue
        raise GraphFailed(data["node_id"], data["node_type"], kind, message)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _link(link: Path, target: Path) -> None:
    if os.path.lexists(link):
        return
    if os.name == "nt":
        # Unlike a symbolic link, a junction asks for no special right.
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)
