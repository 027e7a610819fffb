"""Waiting for a condition, which the error names if it does not become true in time.

Tests wait for what they need, never for a time. A test that can be notified, by a future or an event, needs none of
these functions: they are for servers, processes, files and indexes that notify no caller.
"""

import asyncio
import inspect
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

TIMEOUT_SECONDS = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1
_NOTHING = object()


def eventually(
    look: Callable[[], T],
    what: str,
    *,
    is_right: Callable[[T], object] = bool,
    timeout: float = TIMEOUT_SECONDS,
    ignore: tuple[type[Exception], ...] = (),
) -> T:
    """The first value of ``look`` that is right.

    Errors of the classes ``ignore`` count as values that are not right. Raises ``AssertionError`` with ``what`` and the
    last value or error after ``timeout`` seconds.
    """
    last: Any = _NOTHING
    for pause in _pauses(timeout):
        try:
            last = look()
        except ignore as error:
            last = error
        else:
            if is_right(last):
                return last
        time.sleep(pause)
    raise _error(what, timeout, last)


async def async_eventually(
    look: Callable[[], T | Awaitable[T]],
    what: str,
    *,
    is_right: Callable[[T], object] = bool,
    timeout: float = TIMEOUT_SECONDS,
    ignore: tuple[type[Exception], ...] = (),
) -> T:
    """The same for event loops; ``look`` may be a coroutine function. A call that hangs is cancelled, too."""
    last: Any = _NOTHING
    try:
        async with asyncio.timeout(timeout) as scope:
            for pause in _pauses(timeout):
                try:
                    last = look()
                    if inspect.isawaitable(last):
                        last = await last
                except ignore as error:
                    last = error
                else:
                    if is_right(last):
                        return last
                await asyncio.sleep(pause)
    except TimeoutError:
        if not scope.expired():
            raise
    raise _error(what, timeout, last)


def wait_until_listening(port: int, process: "subprocess.Popen[Any]", output: Callable[[], str]) -> None:
    """Wait until a program listens at its port. The error has its output."""

    def is_listening() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"{process.args!r} has ended:\n{output()}")
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True

    try:
        eventually(is_listening, f"a program listens at port {port}", ignore=(OSError,))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{output()}") from None


def _pauses(timeout: float) -> Iterator[float]:
    """Pauses that become longer, until the time is over."""
    end, pause = time.monotonic() + timeout, _FIRST_PAUSE
    while time.monotonic() < end:
        yield pause
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _error(what: str, timeout: float, last: object) -> AssertionError:
    seen = "" if last is _NOTHING else f"; last: {str(last)[-2000:]!r}"
    return AssertionError(f"not within {timeout} s: {what}{seen}")
