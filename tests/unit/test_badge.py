"""What the badge says of a run, and how often."""

import copy
import sys
from types import SimpleNamespace

import pytest

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.account.run_summary import RunSummary
from dit_accel.accel.attention.budget import PRESETS
from dit_accel.accel.attention.run import Run, Settings
from dit_accel.accel.attention.schedule import SigmaWindow
from dit_accel.accel.comfy.sparse import badge
from dit_accel.accel.comfy.sparse.badge import EVENT, Badge, numbers


def summary(**facts) -> RunSummary:
    return RunSummary("svg2", "WanModel", "custom", **facts)


def test_a_sparse_run_in_numbers_and_words():
    run = summary(
        sparse={"triton": 20, "triton 8-bit": 10},
        dense={reasons.OUTSIDE_WINDOW: 8, reasons.DENSE_BLOCK: 2, reasons.CROSS_ATTENTION: 40, reasons.OTHER_STREAM: 7},
        density=0.28765,
    )
    assert numbers(run, done=True) == {
        "sparse": 30,
        "dense": 10,
        "share": 0.75,
        "density": 0.28765,
        "reason": None,
        "text": "density 0.288, 75% of calls sparse",
    }


@pytest.mark.parametrize(
    ("dense", "reason"),
    [
        ({reasons.MASK: 2, reasons.TOO_SHORT: 40, reasons.CROSS_ATTENTION: 99}, reasons.TOO_SHORT),
        ({reasons.CROSS_ATTENTION: 99}, reasons.NO_CALL),
        ({}, reasons.NO_CALL),
    ],
)
@pytest.mark.parametrize("done", [False, True])
def test_an_inactive_run_names_the_reason(dense, reason, done):
    found = numbers(summary(dense=dense), done)
    assert (found["reason"], found["text"]) == (reason, f"inactive: {reason}")
    assert (found["sparse"], found["share"], found["density"]) == (0, 0.0, None)


def test_the_dense_steps_at_the_start_are_no_failure_until_the_run_ends():
    first = summary(dense={reasons.OUTSIDE_WINDOW: 40, reasons.CROSS_ATTENTION: 40})
    found = numbers(first, done=False)
    assert found["reason"] is None and "inactive" not in found["text"]
    assert numbers(first, done=True)["text"] == f"inactive: {reasons.OUTSIDE_WINDOW}"
    mixed = summary(dense={reasons.OUTSIDE_WINDOW: 40, reasons.MASK: 1})
    assert numbers(mixed, done=False)["reason"] == reasons.OUTSIDE_WINDOW


class Server:
    """ComfyUI's server, and a clock that stands still unless it is moved."""

    client_id = "a browser"

    def __init__(self):
        self.messages, self.now = [], 5.0

    def send_sync(self, *message) -> None:
        self.messages.append(message)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def server(monkeypatch) -> Server:
    made = Server()
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=made)))
    monkeypatch.setattr(badge, "time", made)
    return made


def a_run() -> Run:
    return Run(Settings(), PRESETS["few_step"], SigmaWindow(), "WanModel")


def test_messages_are_few_and_the_last_is_never_lost(server):
    shown, run = Badge("7:12"), a_run()
    for _ in range(10):
        shown.show(run)
        server.now += 0.1
    assert len(server.messages) == 4
    shown.show(run.close(), done=True)
    assert len(server.messages) == 5
    assert [message["state"] for _, message, _ in server.messages] == ["running"] * 4 + ["done"]
    event, message, client = server.messages[-1]
    assert (event, client, message["node"]) == (EVENT, "a browser", "7:12")
    assert message.items() >= numbers(run.close(), done=True).items()


def test_without_a_node_or_a_server_nothing_is_sent(server, monkeypatch):
    Badge(None).show(a_run(), done=True)
    assert not server.messages
    monkeypatch.setattr(sys.modules["server"].PromptServer, "instance", None)
    Badge("7").show(a_run(), done=True)
    monkeypatch.delitem(sys.modules, "server")
    Badge("7").show(a_run(), done=True)
    assert not server.messages


def test_it_travels_in_options_that_are_copied():
    shown = Badge("7")
    assert copy.deepcopy({"options": [shown]})["options"][0] is shown
