"""One background event loop per process, for asynchronous work of synchronous code."""

import asyncio
import concurrent.futures
import contextlib
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


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
        """Run the loop again after ``sys.exit()`` in user code, whose caller gets the exception."""
        while True:
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self.loop.run_forever()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine in the loop, with the caller's context variables; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, awaitable: Awaitable[T]) -> T:
        """Wait for an awaitable in the loop. Raises what it raises; cancels it if the wait is interrupted."""
        if threading.current_thread() is self._thread:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise RuntimeError(
                "sync code that runs on Durably's background event loop cannot wait for something asynchronous: "
                "await it there (client.send instead of client.send_sync, say)"
            )
        future = self.submit(_await(awaitable))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class Remote(Generic[T]):
    """The result of a coroutine on another thread's event loop: await it, or block for its ``result()``.

    Cancelling the wait, or interrupting it, cancels the coroutine.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self._future = asyncio.run_coroutine_threadsafe(coroutine, loop)

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self) -> T:
        """Raises the coroutine's exception."""
        try:
            return self._future.result()
        except BaseException:
            self._future.cancel()
            raise


def await_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """To be awaited at once: a coroutine that must run on a certain event loop, which may be another thread's."""
    if asyncio.get_running_loop() is loop:
        return coroutine
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


_lock = threading.Lock()
_background_loop: BackgroundLoop | None = None


def get_background_loop() -> BackgroundLoop:
    """The background loop of this process."""
    global _background_loop
    with _lock:
        if _background_loop is None:
            _background_loop = BackgroundLoop()
        return _background_loop


def _forget() -> None:
    global _background_loop, _lock
    _background_loop, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
