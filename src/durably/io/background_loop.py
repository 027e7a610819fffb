"""Event loops in threads, for async work of sync code and for the engine."""

import asyncio
import concurrent.futures
import contextlib
import inspect
import os
import queue
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
CallBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a function, and returns its result."""


class BackgroundLoop:
    """An event loop in a daemon thread, to which other threads submit coroutines."""

    def __init__(
        self,
        name: str = "durably-background-loop",
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self.loop = new_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Run the loop again after ``sys.exit()`` in user code.

        The caller of that code gets the exception.
        """
        while True:
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self.loop.run_forever()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine in the loop, with the caller's context variables.

        Cancelling the future cancels the coroutine.
        """
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, awaitable: Awaitable[T]) -> T:
        """Wait for an awaitable in the loop, and raise its exception.

        The awaitable is cancelled if the wait is interrupted.
        """
        if threading.current_thread() is self._thread:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise RuntimeError(
                "sync code that runs on Durably's background event loop cannot block on async work: "
                "await it there (client.send instead of client.send_sync, say)"
            )
        future = self.submit(_await(awaitable))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class Remote(Generic[T]):
    """The result of a coroutine on another thread's event loop.

    Await it, or block for its ``result()``. Cancelling the wait, or interrupting it, cancels the coroutine.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self._future = asyncio.run_coroutine_threadsafe(coroutine, loop)

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self) -> T:
        """The result. Raises the coroutine's exception."""
        try:
            return self._future.result()
        except BaseException:
            self._future.cancel()
            raise


def await_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """An awaitable of a coroutine that must run on a certain event loop.

    The loop may be another thread's. Await the result at once.
    """
    if asyncio.get_running_loop() is loop:
        return coroutine
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, ``None`` if there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


class OnAnyLoop(Remote[T]):
    """A coroutine that can run on any event loop.

    If it is awaited, it runs on the running loop. If a caller blocks on it, it runs on ``loop``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._loop = loop
        self._start = start

    def __await__(self) -> Generator[Any, None, T]:
        return self._start().__await__()

    def result(self) -> T:
        return Remote(self._loop, self._start()).result()


_lock = threading.Lock()
_background_loop: BackgroundLoop | None = None
_engine_loop: BackgroundLoop | None = None


def get_background_loop() -> BackgroundLoop:
    """The background loop of this process, for users' asynchronous code."""
    global _background_loop
    with _lock:
        if _background_loop is None:
            _background_loop = BackgroundLoop()
        return _background_loop


def iterate_sync(stream: AsyncGenerator[bytes, None]) -> Iterator[bytes]:
    """The chunks of a stream, for a thread. The stream runs on the background loop."""
    loop = get_background_loop()
    try:
        while (chunk := loop.run(anext(stream, None))) is not None:
            yield chunk
    finally:
        loop.run(stream.aclose())


def get_engine_loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process's engine, in a thread of its own.

    It runs no user code.
    """
    global _engine_loop
    with _lock:
        if _engine_loop is None:
            uvloop = sys.modules.get("uvloop")  # if the app uses it
            _engine_loop = BackgroundLoop(
                "durably-engine", asyncio.new_event_loop if uvloop is None else uvloop.new_event_loop
            )
        return _engine_loop.loop


def run_with_callbacks(start: Callable[[CallBlocking], Coroutine[Any, Any, T]]) -> T:
    """Block this thread until a coroutine has ended on the background loop.

    ``start`` creates the coroutine. Functions given to its argument are called in this thread, with this thread's
    request, database connections and locks.
    """
    calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
    background = get_background_loop()

    async def call_here(function: Callable[[], Any]) -> Any:
        result: asyncio.Future[Any] = background.loop.create_future()
        calls.put((function, result))
        return await result

    running = background.submit(start(call_here))
    running.add_done_callback(lambda _: calls.put(None))
    try:
        while (call := calls.get()) is not None:
            _call(background.loop, *call)
        return running.result()
    except BaseException:
        running.cancel()
        raise


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], Any], result: asyncio.Future[Any]) -> None:
    try:
        value = function()
    except Exception as error:
        loop.call_soon_threadsafe(_resolve, result, None, error)
    else:
        loop.call_soon_threadsafe(_resolve, result, value, None)


def _resolve(result: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if result.done():  # The coroutine was cancelled.
        return
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(value)


def _forget() -> None:
    """Reset after a fork: the child has none of its parent's threads."""
    global _background_loop, _engine_loop, _lock
    _background_loop, _engine_loop, _lock = None, None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
