"""The engine's thread: one per process, with an event loop of its own.

The engine, its heartbeats and its sockets live on it. No code of the app runs there, so the app cannot delay them by
blocking its own event loop.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from durably.portal import Portal, Remote

T = TypeVar("T")

_lock = threading.Lock()
_portal: Portal | None = None


def submit(coroutine: Coroutine[Any, Any, T]) -> Remote[T]:
    """Run a coroutine on the engine's thread: to be awaited on any other event loop, or waited for in any thread."""
    return Remote(engine_loop(), coroutine)


class OnAnyLoop(Remote[T]):
    """A coroutine that can run on any event loop: awaited, it runs on the running one; blocked for, on the engine's."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._start = start

    def __await__(self) -> Generator[Any, None, T]:
        return self._start().__await__()

    def result(self) -> T:
        return submit(self._start()).result()


def engine_loop() -> asyncio.AbstractEventLoop:
    """The thread of this process. A forked child has its own."""
    global _portal
    with _lock:
        if _portal is None:
            _portal = Portal("durably-engine", _new_loop)
        return _portal.loop


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop if the app uses it."""
    uvloop = sys.modules.get("uvloop")
    return asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()


def _forget() -> None:
    global _portal, _lock
    _portal, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
