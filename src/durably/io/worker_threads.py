"""Worker threads for blocking code, which keep the event loop free."""

import asyncio
import contextvars
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from types import FrameType
from typing import Any, TypeVar

from durably.execution import running_step
from durably.execution.asyncio_compat import stack_of_thread
from durably.protocol.text import printable
from durably.run_logger import Logger

T = TypeVar("T")

RequestContext = Callable[[], AbstractContextManager[object]]
_Job = tuple["asyncio.Future[Any]", asyncio.AbstractEventLoop, contextvars.Context, Callable[[], Any]]


class WorkerThreads:
    """Threads of a pool.

    ``request_context`` creates the framework's context for work in a thread. ``size`` is the number of threads, if it
    is known.

    Without a size, each job is a task of the executor, which may have other users. With a size, the executor gets at
    most ``size`` tasks at a time, and a task runs jobs until none waits. This saves ``ThreadPoolExecutor``'s future
    with a condition for each task: a third of a job's cost, if many wait.
    """

    def __init__(self, pool: Executor, request_context: RequestContext = nullcontext, size: int | None = None) -> None:
        self.size = size
        self._pool = pool
        self._request_context = None if request_context is nullcontext else request_context
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._running = 0
        """Tasks in the executor. Changed under the lock, like the queue."""

    async def run(self, work: Callable[[], T], *, on_abandoned: Callable[[], None] | None = None) -> T:
        """Call ``work`` in a thread, with a copy of the caller's context variables.

        Raises the errors of ``work``, and ``RuntimeError`` if the executor is shut down. If the caller is cancelled,
        work that has not begun is dropped. A thread cannot be interrupted: work that has begun continues, its result is
        dropped, and ``on_abandoned`` is called.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()  # ``wrap_future`` would add half of this cost
        job = (done, loop, contextvars.copy_context(), work)
        with self._lock:
            self._jobs.append(job)
            needs_task = self._running != self.size
            if needs_task:
                self._running += 1
        if needs_task:
            try:
                self._pool.submit(self._run_jobs)
            except BaseException:
                with self._lock:
                    self._running -= 1
                self._withdraw(job)
                raise
        try:
            return await done
        except asyncio.CancelledError:
            if done.cancelled() and not self._withdraw(job) and on_abandoned is not None:
                on_abandoned()
            raise

    def _withdraw(self, job: _Job) -> bool:
        """Take back a job. Returns ``False`` if a thread has begun it."""
        with self._lock, suppress(ValueError):
            self._jobs.remove(job)
            return True
        return False

    def _run_jobs(self) -> None:
        """Run jobs in a thread, as a task of the executor."""
        may_continue = True
        while True:
            with self._lock:
                if not self._jobs or not may_continue:
                    self._running -= 1  # under the queue's lock, so that no job stays in it
                    return
                done, loop, context, work = self._jobs.popleft()
            deliver: Callable[[], None]
            try:
                if self._request_context is None:
                    deliver = partial(_resolve, done, context.run(work))
                else:
                    deliver = partial(_resolve, done, context.run(self._run_in_request_context, work))
            except BaseException as error:
                deliver = partial(_reject, done, error)
            with suppress(RuntimeError):  # The loop is closed, so no caller waits.
                loop.call_soon_threadsafe(deliver)
            may_continue = self.size is not None

    def _run_in_request_context(self, work: Callable[[], T]) -> T:
        assert self._request_context is not None
        with self._request_context():
            return work()


def _resolve(done: asyncio.Future[T], value: T) -> None:
    if not done.done():
        done.set_result(value)


def _reject(done: asyncio.Future[T], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)


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
