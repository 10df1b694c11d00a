"""The steps of planning, for whoever measures where its time goes. A step costs next to nothing while nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

Listener = Callable[[str], AbstractContextManager[None]]

_listener: ContextVar[Listener | None] = ContextVar("dit_accel_planning_steps", default=None)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Around a step of planning; as a decorator, around every call of a function."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    with listener(name):
        yield


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """While it lasts, every step of this thread runs inside listener(name); one step may contain another."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
