"""A coroutine for a synchronous caller, with callbacks in the caller's thread."""

import asyncio
import queue
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from .background_loop import get_background_loop

T = TypeVar("T")

CallBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a function, and returns its result."""


def run_with_callbacks(start: Callable[[CallBlocking], Coroutine[Any, Any, T]]) -> T:
    """Block this thread until a coroutine has ended on the background loop.

    ``start`` makes the coroutine. Functions that it gives to its argument are called in this thread, with this thread's
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
            _answer(background.loop, *call)
        return running.result()
    except BaseException:
        running.cancel()
        raise


def _answer(loop: asyncio.AbstractEventLoop, function: Callable[[], Any], result: asyncio.Future[Any]) -> None:
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
