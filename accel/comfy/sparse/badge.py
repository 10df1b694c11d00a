"""Tells the browser, while a model is sampled, what the sparse attention node is doing."""

from __future__ import annotations

import sys
import time

from ...attention import reasons
from ...attention.account.run_summary import RunSummary
from ...attention.run import Run

EVENT = "dit_accel.run"
INTERVAL = 0.25  # seconds between messages


class Badge:
    """Messages about one run, a few in a second and one at its end. node: the graph node's id; without one, and where
    no server runs, nothing is sent."""

    def __init__(self, node: str | None) -> None:
        self._node = node
        self._last = float("-inf")

    def __deepcopy__(self, memo) -> Badge:
        """It travels in model options, which other nodes copy."""
        return self

    def show(self, run: Run | RunSummary, done: bool = False) -> None:
        """What is known so far; done: the run has ended."""
        server = _server()
        now = time.monotonic()
        if self._node is None or server is None or (not done and now - self._last < INTERVAL):
            return
        self._last = now
        summary = run if isinstance(run, RunSummary) else run.progress()
        state = {"node": self._node, "state": "done" if done else "running", **numbers(summary, done)}
        server.send_sync(EVENT, state, server.client_id)


def numbers(summary: RunSummary, done: bool) -> dict:
    """sparse, dense: video self-attention calls; density: mean of the sparse ones, None without; share: of the calls,
    sparse; reason: why none is, or None; text: all this in words. done: whether the run has ended."""
    dense = reasons.of_video(summary.dense)
    calls = summary.sparse_calls + sum(dense.values())
    share = summary.sparse_calls / calls if calls else 0.0
    facts = {"sparse": summary.sparse_calls, "dense": sum(dense.values()), "share": share}
    if summary.sparse_calls:
        text = f"density {summary.density:.3f}, {share:.0%} of calls sparse"
        return {**facts, "density": summary.density, "reason": None, "text": text}
    if not done and set(dense) == {reasons.OUTSIDE_WINDOW}:
        return {**facts, "density": None, "reason": None, "text": "dense so far, as the budget says"}
    reason = reasons.commonest(dense)
    return {**facts, "density": None, "reason": reason, "text": f"inactive: {reason}"}


def _server():
    """ComfyUI's server, if this process runs one."""
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)
