"""Logs functions that block their event loop, while they do.

A thread sends a callback to each event loop that runs functions. If the loop does not answer for a second, the stack of
its thread shows the function and the step's handler that block it.
"""

import asyncio
import os
import threading
import time
from contextlib import suppress
from types import FrameType

from durably.execution import running_step
from durably.execution.asyncio_compat import stack_of_thread
from durably.protocol.text import printable
from durably.run_logger import Logger

BLOCKED_SECONDS = 1.0
_LOOK_SECONDS = 0.1
_IDLE_LOOKS = 50
"""Number of checks without a call after which the thread waits until it is woken."""
_QUIET_SECONDS = 60.0
"""Seconds before the same function and step are logged again."""

Running = tuple[str, str | None]
"""A function's id, and the id of the step whose handler runs."""


class WatchedLoop:
    """An event loop, which counts its calls and answers.

    The other fields belong to the watching thread. ``since`` is the time of the last callback, or the time at which
    ``suspect`` began to run after it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.thread_id = threading.get_ident()
        self.calls = 0
        self.answered = 0
        self.asked = 0
        self.since = 0.0
        self.suspect: Running | None = None

    def answer(self, number: int) -> None:
        self.answered = number


class LoopWatch:
    """Watches the event loops of one process.

    A call adds itself to the ``calls`` of its loop in ``loops``. It calls ``start`` if the loop is missing, or if the
    watching thread is not awake. ``logger`` is that of the latest call.
    """

    def __init__(self) -> None:
        self.loops: dict[asyncio.AbstractEventLoop, WatchedLoop] = {}
        self._lock = threading.Lock()
        self.is_awake = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned: dict[Running, float] = {}
        self.logger: Logger | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> WatchedLoop:
        """Watch the running loop."""
        with self._lock:
            watched = self.loops.get(loop)
            if watched is None:
                watched = self.loops[loop] = WatchedLoop(loop)
            self.is_awake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="durably-loop-watch", daemon=True)
                self._thread.start()
        return watched

    def _run(self) -> None:
        idle = 0
        while True:
            if idle >= _IDLE_LOOKS:
                idle = 0
                self.is_awake.clear()
                if not any(watched.calls for watched in list(self.loops.values())):
                    self.is_awake.wait()
            time.sleep(_LOOK_SECONDS)
            with self._lock:
                watched_loops = list(self.loops.values())
            is_busy = False
            for watched in watched_loops:
                if watched.loop.is_closed():
                    with self._lock:
                        self.loops.pop(watched.loop, None)
                elif watched.calls:
                    is_busy = True
                    self._look_at(watched)
            idle = 0 if is_busy else idle + 1

    def _look_at(self, watched: WatchedLoop) -> None:
        now = time.monotonic()
        if watched.answered == watched.asked:
            watched.asked += 1
            watched.since, watched.suspect = now, None
            with suppress(RuntimeError):  # the loop has been closed
                watched.loop.call_soon_threadsafe(watched.answer, watched.asked)
            return
        frame = stack_of_thread(watched.thread_id)
        suspect = None if frame is None else running_step(frame)
        if watched.suspect is not None and suspect != watched.suspect:
            watched.since = now  # many short pieces of work do not count as blocking
        watched.suspect = suspect
        if suspect is not None and frame is not None and now - watched.since >= BLOCKED_SECONDS:
            self._warn(suspect, frame, now)

    def _warn(self, suspect: Running, frame: FrameType, now: float) -> None:
        if self.logger is None or now - self._warned.get(suspect, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return
        self._warned = {running: at for running, at in self._warned.items() if now - at < _QUIET_SECONDS}
        self._warned[suspect] = now
        function_id, step_id = suspect
        where = f'step "{printable(step_id)}"' if step_id is not None else "code between the steps"
        self.logger.warning(
            '%s of function "%s" has blocked the event loop for more than %g s, at %s:%d: all other code on that loop '
            "waits. %s, or await what it waits for",
            where,
            function_id,
            BLOCKED_SECONDS,
            frame.f_code.co_filename,
            frame.f_lineno,
            "Put it into a step with a sync handler, which runs in a thread"
            if step_id is None
            else "Make the handler a sync function, which runs in a thread",
        )


loop_watch = LoopWatch()


def _renew() -> None:
    loop_watch.__init__()  # type: ignore[misc]  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
