"""Step handlers of async functions: which of them are async, and the result of one that ran in a thread."""

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

_NO_LOOP = ("no running event loop", "no current event loop")


def is_async(handler: Any) -> bool:
    """Whether a handler is called on the event loop: a coroutine function, or an object whose ``__call__`` is one.

    A sync function that returns a coroutine counts as sync: it may block before it returns.
    """
    if type(handler) is FunctionType and handler.__code__.co_flags & inspect.CO_COROUTINE:
        return True
    while isinstance(handler, partial):
        handler = handler.func
    if inspect.iscoroutinefunction(handler):
        return True
    return not inspect.isroutine(handler) and inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


class Attempt:
    """One call of a handler in a thread. Its result is read on the event loop.

    The handler's exception is stored, not raised in the thread: futures refuse ``StopIteration``, and treat
    ``CancelledError`` as a cancellation.
    """

    __slots__ = ("_call", "_error", "_value")

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None

    def make(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """The handler's result. Raises the handler's exception."""
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            if isinstance(error, asyncio.CancelledError):
                raise RuntimeError("the handler raised asyncio.CancelledError") from error
            if isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_LOOP):
                error.add_note(
                    "A sync handler of an async function runs in a worker thread, which has no event loop: "
                    "make the handler async, or have it return a coroutine, which is awaited on the event loop."
                )
            raise error
        finally:
            del error  # otherwise its traceback would refer to it, and only the garbage collector would free both
