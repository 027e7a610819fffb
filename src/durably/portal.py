"""The portal: one background event loop per process, for what is asynchronous in a synchronous place.

An async function under WSGI, streaming from a thread, async middleware of a sync function: they run here.
Started when first needed; a forked child starts its own.
"""

import asyncio
import concurrent.futures
import contextvars
import os
import threading
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """An event loop in a daemon thread, with a way in from other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="durably-portal", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine in the loop, with the caller's context variables."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        context = contextvars.copy_context()

        def start() -> None:
            task = self._loop.create_task(coroutine, context=context)
            tasks.append(task)
            task.add_done_callback(lambda task: _copy_result(task, future))

        tasks: list[asyncio.Task[T]] = []
        future.add_done_callback(lambda done: self._cancel(tasks) if done.cancelled() else None)
        self._loop.call_soon_threadsafe(start)
        return future

    def run(self, awaitable: Awaitable[T]) -> T:
        """Wait for an awaitable in the loop. Raises what it raises; cancels it if the wait is interrupted."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("the portal's own thread cannot wait for the portal: await instead")
        future = self.submit(_await(awaitable))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _cancel(self, tasks: list[asyncio.Task[T]]) -> None:
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _copy_result(task: asyncio.Task[T], future: concurrent.futures.Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        if not task.cancelled():
            task.exception()
    elif task.cancelled():
        future.set_exception(concurrent.futures.CancelledError())
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


_lock = threading.Lock()
_portal: Portal | None = None


def get_portal() -> Portal:
    """This process's portal."""
    global _portal
    with _lock:
        if _portal is None:
            _portal = Portal()
        return _portal


def _forget() -> None:
    global _portal, _lock
    _portal, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
