"""The app's event loop, as the engine's thread sees it: async functions run there, and nothing of the engine does.

A loop that a function blocks delays the other functions of its process. It delays no heartbeat, no timer and no other
process.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from durably.portal import get_portal

from .errors import CallHandedBackError

T = TypeVar("T")


class AppLoop:
    """Where async functions run: on ``loop``, or, while it is ``None``, on the process's background event loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._under_way: set[asyncio.Future[None]] = set()

    @property
    def is_usable(self) -> bool:
        """Whether it is known, and runs."""
        return self.loop is not None and self.loop.is_running()

    async def run(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the app's loop, and wait for it on the running one, the engine's.

        The coroutine has no context variables. Cancelled, this cancels the coroutine and does not wait for its end:
        see ``wait_ended``. Raises what it raises, ``RuntimeError`` if it is cancelled by itself, and
        ``CallHandedBackError`` if the app's loop does not run any more.
        """
        engine_loop, app_loop = asyncio.get_running_loop(), self.loop or get_portal().loop
        ended: asyncio.Future[None] = engine_loop.create_future()
        task: asyncio.Task[T] | None = None
        is_cancelled = False

        def begin() -> None:
            nonlocal task
            if is_cancelled:
                tell_end()
                return
            task = app_loop.create_task(start(), context=contextvars.Context())
            task.add_done_callback(tell_end)

        def tell_end(_: object = None) -> None:
            engine_loop.call_soon_threadsafe(end)

        def end() -> None:
            self._under_way.discard(ended)
            if not ended.done():
                ended.set_result(None)

        def cancel() -> None:
            if task is not None:
                task.cancel()

        try:
            app_loop.call_soon_threadsafe(begin)
        except RuntimeError:
            raise CallHandedBackError("the app's event loop is closed") from None
        self._under_way.add(ended)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            is_cancelled = True
            app_loop.call_soon_threadsafe(cancel)
            raise
        assert task is not None
        if task.cancelled():
            # Otherwise the attempt would never end, and its run would wait forever.
            raise RuntimeError("the call was cancelled by the app's own code (asyncio.CancelledError)")
        return task.result()

    async def wait_ended(self, seconds: float) -> None:
        """Wait until all coroutines have ended, including cancelled ones, up to the timeout."""
        if self._under_way:
            await asyncio.wait(set(self._under_way), timeout=seconds)
