"""Coroutines whose callbacks run in the thread of a synchronous caller."""

import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from durably.io.calling_thread import run_with_callbacks

CallBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]
name: contextvars.ContextVar[str] = contextvars.ContextVar("name")


def test_callbacks_run_in_the_callers_thread_and_context() -> None:
    name.set("ada")

    async def ask(call: CallBlocking) -> list[Any]:
        return [threading.get_ident(), await call(threading.get_ident), await call(name.get), name.get()]

    own, called, *names = run_with_callbacks(ask)
    assert called == threading.get_ident() != own
    assert names == ["ada", "ada"]


def test_errors_of_callbacks_and_of_the_coroutine_are_raised() -> None:
    async def ask(call: CallBlocking) -> str:
        with pytest.raises(ZeroDivisionError):
            await call(lambda: 1 // 0)
        return await call(lambda: {}["key"])

    with pytest.raises(KeyError, match="key"):
        run_with_callbacks(ask)


def test_an_interrupted_caller_cancels_the_coroutine() -> None:
    cancelled = threading.Event()

    def interrupt() -> None:
        raise SystemExit(1)

    async def ask(call: CallBlocking) -> None:
        try:
            await call(interrupt)
        finally:
            cancelled.set()

    with pytest.raises(SystemExit):
        run_with_callbacks(ask)
    assert cancelled.wait(30)
