"""HTTP to an engine, for async and for blocking callers alike.

One thread-safe pool of connections serves every thread and every event loop of the process, which no
asynchronous client can: those belong to one loop. Async callers wait for a worker thread; the SDK's own
requests are few and small beside what they cause. ``IO`` is the little that shared code needs of the
outside; it is written once, over either kind.
"""

import asyncio
import concurrent.futures
import contextvars
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from durably.errors import TransportError
from durably.portal import get_portal
from durably.protocol.headers import Header
from durably.protocol.signatures import bearer_token

T = TypeVar("T")

_MAX_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None
    timeout: float = 30.0
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes


Job = asyncio.Future[Any] | concurrent.futures.Future[Any]
"""Something that was started: its ``result()`` once it has ended, ``cancel()`` before."""


class IO(Protocol):
    """The outside, as shared code sees it. The blocking kind never suspends."""

    async def request(self, request: Request) -> Response:
        """Raises ``TransportError`` when there is no answer."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    async def resolve(self, value: Awaitable[T]) -> T:
        """Wait for something asynchronous; where that blocks, it happens in the portal."""
        ...

    async def run(self, pool: ThreadPoolExecutor | None, function: Callable[[], T]) -> T:
        """Call something that blocks; where that would block an event loop, in the pool (if there is one)."""
        ...

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Job:
        """Start something asynchronous without waiting for it."""
        ...

    async def wait(self, job: Job, seconds: float) -> bool:
        """Wait for a job for so long; True if it has ended."""
        ...


class _Connections:
    """The process's connection pool and the threads that async callers use it from; remade after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._managers: dict[str | None, urllib3.PoolManager] = {}
        self._executor: ThreadPoolExecutor | None = None

    def manager_for(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
        with self._lock:
            if proxy not in self._managers:
                options: dict[str, Any] = {"maxsize": _MAX_CONNECTIONS, "retries": False}
                self._managers[proxy] = (
                    urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
                )
            return self._managers[proxy]

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_MAX_CONNECTIONS, thread_name_prefix="durably-http")
            return self._executor


_connections = _Connections()


def _renew() -> None:
    global _connections
    _connections = _Connections()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def send(request: Request) -> Response:
    """Send a request and wait for its answer; redirects are not followed."""
    try:
        answer = _connections.manager_for(request.url).request(
            request.method,
            request.url,
            body=request.body,
            headers=dict(request.headers),
            timeout=urllib3.Timeout(total=request.timeout),
            redirect=False,
        )
    except urllib3.exceptions.HTTPError as error:
        parts = urlsplit(request.url)
        reason = "it did not answer in time" if isinstance(error, urllib3.exceptions.TimeoutError) else _reason(error)
        raise TransportError(f"cannot reach {parts.scheme}://{parts.netloc.rpartition('@')[2]}: {reason}") from None
    return Response(answer.status, answer.data)


def _reason(error: Exception) -> str:
    """What went wrong in plain words, without the URL that urllib3's messages contain."""
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "the host's name cannot be resolved"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "the connection was refused"
    if isinstance(error, urllib3.exceptions.SSLError):
        return "the TLS handshake failed"
    return "the connection broke off"


class BlockingIO:
    """Blocks the calling thread."""

    async def request(self, request: Request) -> Response:
        return send(request)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def resolve(self, value: Awaitable[T]) -> T:
        return get_portal().run(value)

    async def run(self, pool: ThreadPoolExecutor | None, function: Callable[[], T]) -> T:
        return function()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Job:
        return get_portal().submit(coroutine)

    async def wait(self, job: Job, seconds: float) -> bool:
        assert isinstance(job, concurrent.futures.Future)
        return bool(concurrent.futures.wait([job], seconds).done)


class AsyncIO:
    """Waits in the running event loop."""

    async def request(self, request: Request) -> Response:
        return await asyncio.get_running_loop().run_in_executor(_connections.executor(), send, request)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def resolve(self, value: Awaitable[T]) -> T:
        return await value

    async def run(self, pool: ThreadPoolExecutor | None, function: Callable[[], T]) -> T:
        if pool is None:
            return function()
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(pool, context.run, function)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Job:
        return asyncio.ensure_future(coroutine)

    async def wait(self, job: Job, seconds: float) -> bool:
        assert isinstance(job, asyncio.Future)
        return bool((await asyncio.wait([job], timeout=seconds))[0])


async def request_with_keys(io: IO, request: Request, keys: tuple[str | None, str | None]) -> Response:
    """Send with the bearer token of the signing key; where it is refused, with that of the fallback."""
    usable = [key for key in keys if key]
    response = await io.request(_with_bearer(request, usable[0] if usable else None))
    if response.status in (401, 403) and len(usable) > 1:
        response = await io.request(_with_bearer(request, usable[1]))
    return response


def _with_bearer(request: Request, key: str | None) -> Request:
    if key is None:
        return request
    headers = {**request.headers, Header.AUTHORIZATION.value: f"Bearer {bearer_token(key)}"}
    return Request(request.method, request.url, headers, request.body, request.timeout)
