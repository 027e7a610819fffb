"""HTTP to an engine, for async and for blocking callers."""

import asyncio
import concurrent.futures
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from durably.protocol.headers import Header
from durably.protocol.signatures import bearer_token

from .background_loop import Remote, get_background_loop

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MAX_THREADS = 32
"""Maximum number of concurrent requests of async callers, equal to the connections."""
_MAX_LONG_POLLS = 256
"""The same of long polls."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to an engine.

    ``timeout`` is the number of seconds from connecting to the answer's last byte. ``is_long_poll``: the answer may
    take that long by intention.
    """

    method: str
    url: str = field(repr=False)  # may contain an event key
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    timeout: float = 30.0
    is_long_poll: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes


class PendingResult(Protocol[T_co]):
    """Started work.

    ``result()`` is for work that has ended, ``cancel()`` for work that has not.
    """

    def result(self) -> T_co: ...

    def cancel(self) -> bool: ...


class IO(Protocol):
    """I/O for code that is written once for sync and async callers.

    The blocking kind never suspends.
    """

    async def request(self, request: Request) -> Response:
        """Send a request. Raises ``TransportError`` if there is no answer."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def resolve(self, value: Awaitable[T]) -> Awaitable[T]:
        """Await a value. The blocking kind waits for it on the background loop."""
        ...

    async def compute(self, function: Callable[[], T], executor: Executor | None = None) -> T:
        """Call code that computes or blocks for a long time.

        From an event loop, it runs in a thread of the executor.
        """
        ...

    def start(self, coroutine: Coroutine[Any, Any, T]) -> PendingResult[T]:
        """Start a coroutine without waiting for it.

        On an event loop it ends with the current task.
        """
        ...

    def detach(self, coroutine: Coroutine[Any, Any, T]) -> PendingResult[T]:
        """Start a coroutine that does not end with the current task."""
        ...

    async def wait(self, job: PendingResult[Any], seconds: float) -> bool:
        """Wait up to ``seconds`` for started work. Returns whether it has ended."""
        ...


@functools.cache
def _executor() -> ThreadPoolExecutor:
    """The threads in which requests of async callers wait. A forked child creates its own."""
    return ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="durably-http")


class _LongPolls:
    """Threads for long polls: others must not wait for these, and neither must the end of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: deque[tuple[concurrent.futures.Future[Response], Request]] = deque()
        self._threads = 0

    def submit(self, request: Request) -> concurrent.futures.Future[Response]:
        future: concurrent.futures.Future[Response] = concurrent.futures.Future()
        with self._lock:
            self._requests.append((future, request))
            if self._threads == _MAX_LONG_POLLS:
                return future
            self._threads += 1
        threading.Thread(target=self._work, name="durably-http-wait", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._requests:
                    self._threads -= 1
                    return
                future, request = self._requests.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(send(request))
                except BaseException as error:
                    future.set_exception(error)


@functools.cache
def _long_polls() -> _LongPolls:
    return _LongPolls()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_executor.cache_clear)
    os.register_at_fork(after_in_child=_long_polls.cache_clear)


def send(request: Request) -> Response:
    """Send a request and wait for its answer.

    Redirects are not followed. Raises ``TransportError``.
    """
    from . import http_connections  # not every process sends requests, and starts sooner without urllib3

    status, body = http_connections.send(request.method, request.url, request.headers, request.body, request.timeout)
    return Response(status, body)


class BlockingIO:
    """Blocks the calling thread."""

    async def request(self, request: Request) -> Response:
        return send(request)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def resolve(self, value: Awaitable[T]) -> T:
        return value.result() if isinstance(value, Remote) else get_background_loop().run(value)

    async def compute(self, function: Callable[[], T], executor: Executor | None = None) -> T:
        return function()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> PendingResult[T]:
        return get_background_loop().submit(coroutine)

    def detach(self, coroutine: Coroutine[Any, Any, T]) -> PendingResult[T]:
        return get_background_loop().submit(coroutine)

    async def wait(self, job: PendingResult[Any], seconds: float) -> bool:
        assert isinstance(job, concurrent.futures.Future)
        return bool(concurrent.futures.wait([job], seconds).done)


class AsyncIO:
    """Waits in the running event loop."""

    async def request(self, request: Request) -> Response:
        if request.is_long_poll:
            return await asyncio.wrap_future(_long_polls().submit(request))
        return await asyncio.get_running_loop().run_in_executor(_executor(), send, request)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def resolve(self, value: Awaitable[T]) -> Awaitable[T]:
        return value

    async def compute(self, function: Callable[[], T], executor: Executor | None = None) -> T:
        if executor is None:
            return await asyncio.to_thread(function)
        return await asyncio.get_running_loop().run_in_executor(executor, function)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> PendingResult[T]:
        job = asyncio.ensure_future(coroutine)
        starter = asyncio.current_task()
        assert starter is not None
        # If the client disconnects, servers cancel the writing task, but not all close the generator that it reads.
        starter.add_done_callback(lambda _: job.cancel())
        return job

    def detach(self, coroutine: Coroutine[Any, Any, T]) -> PendingResult[T]:
        return asyncio.get_running_loop().create_task(coroutine)

    async def wait(self, job: PendingResult[Any], seconds: float) -> bool:
        assert isinstance(job, asyncio.Future)
        return bool((await asyncio.wait([job], timeout=seconds))[0])


async def request_with_keys(io: IO, request: Request, keys: tuple[str | None, str | None]) -> Response:
    """Send a request with the bearer token of the signing key.

    If it is refused, send it with the token of the fallback key.
    """
    usable = [key for key in keys if key]
    response = await io.request(_with_bearer(request, usable[0] if usable else None))
    if response.status in (401, 403) and len(usable) > 1:
        response = await io.request(_with_bearer(request, usable[1]))
    return response


def _with_bearer(request: Request, key: str | None) -> Request:
    if key is None:
        return request
    headers = {**request.headers, Header.AUTHORIZATION.value: f"Bearer {bearer_token(key)}"}
    return replace(request, headers=headers)
