"""HTTP to an engine, for async and for blocking callers."""

import asyncio
import concurrent.futures
import ipaddress
import logging
import os
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from durably.errors import TransportError
from durably.protocol.headers import Header
from durably.protocol.signatures import bearer_token

from .background_loop import Remote, get_background_loop

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MAX_CONNECTIONS = 32
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """A request to an engine.

    ``timeout`` is seconds, from connecting to the answer's last byte.
    """

    method: str
    url: str = field(repr=False)  # may contain an event key
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes


class Job(Protocol[T_co]):
    """Work that was started.

    ``result()`` is for work that has ended, ``cancel()`` for work that has not.
    """

    def result(self) -> T_co: ...

    def cancel(self) -> bool: ...


class IO(Protocol):
    """I/O for code that is written once for sync and async callers.

    The blocking kind never suspends.
    """

    async def request(self, request: Request) -> Response:
        """Raises ``TransportError`` if there is no answer."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def resolve(self, value: Awaitable[T]) -> Awaitable[T]:
        """Await a value. The blocking kind waits for it on the background loop."""
        ...

    async def compute(self, function: Callable[[], T], executor: Executor | None = None) -> T:
        """Call code that computes or blocks for a long time.

        On an event loop, it runs in a thread of the executor.
        """
        ...

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Job[T]:
        """Start a coroutine without waiting for it.

        In an event loop it ends with the current task.
        """
        ...

    def detach(self, coroutine: Coroutine[Any, Any, T]) -> Job[T]:
        """Start a coroutine that does not end with the current task."""
        ...

    async def wait(self, job: Job[Any], seconds: float) -> bool:
        """Wait up to ``seconds`` for a job. Returns whether it has ended."""
        ...


class _Connections:
    """The process's connection pools, and threads for async callers.

    A forked child makes its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._managers: dict[str | None, urllib3.PoolManager] = {}
        self._executor: ThreadPoolExecutor | None = None

    def manager_for(self, url: str) -> urllib3.PoolManager:
        """Raises ``urllib3.exceptions.HTTPError`` for an invalid proxy."""
        proxy = _proxy_for(url)
        with self._lock:
            if proxy not in self._managers:
                self._managers[proxy] = _make_manager(proxy)
            return self._managers[proxy]

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_MAX_CONNECTIONS, thread_name_prefix="durably-http")
            return self._executor


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment or the platform names.

    ``None`` for a URL on this machine.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_local(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _make_manager(proxy: str | None) -> urllib3.PoolManager:
    options: dict[str, Any] = {"maxsize": _MAX_CONNECTIONS, "retries": False}
    if proxy is None:
        return urllib3.PoolManager(**options)
    parts = urlsplit(proxy)
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    headers = urllib3.make_headers(proxy_basic_auth=credentials)
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


_connections = _Connections()


def _renew() -> None:
    global _connections
    _connections = _Connections()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class _Quiet(threading.local):
    """Stops urllib3's log lines about our requests.

    The lines have whole URLs, and some contain the event key.
    """

    is_sending = False

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.is_sending


_quiet = _Quiet()
logging.getLogger("urllib3.connectionpool").addFilter(_quiet)


def send(request: Request) -> Response:
    """Send a request and wait for its answer.

    Redirects are not followed. Raises ``TransportError``.
    """
    deadline = time.monotonic() + request.timeout
    _quiet.is_sending = True
    try:
        answer = _connections.manager_for(request.url).request(
            request.method,
            request.url,
            body=request.body,
            headers=dict(request.headers),
            timeout=urllib3.Timeout(total=request.timeout),
            redirect=False,
            preload_content=False,
        )
        return Response(answer.status, _read(answer, deadline))
    except (urllib3.exceptions.HTTPError, OSError) as error:
        parts = urlsplit(request.url)
        origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        raise TransportError(f"cannot reach {origin}: {failure_reason(error)}") from None
    except ValueError:  # urlsplit raises it; the engine's URL was checked when the client was made
        raise TransportError(
            "cannot reach the engine: the URL of the proxy in HTTP_PROXY or HTTPS_PROXY is not valid"
        ) from None
    finally:
        _quiet.is_sending = False


def _read(answer: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """The whole body.

    The socket's timeout limits each wait for bytes, ``deadline`` limits their sum.
    """
    chunks: list[bytes] = []
    while chunk := answer.read1(_CHUNK_BYTES):
        chunks.append(chunk)
        if time.monotonic() > deadline:
            answer.close()
            raise urllib3.exceptions.TimeoutError
    return b"".join(chunks)


def failure_reason(error: Exception) -> str:
    """The reason of a failure, without the URL that urllib3's messages contain."""
    if isinstance(error, urllib3.exceptions.ProxyError):
        return f"its proxy: {failure_reason(error.original_error)}"
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "the host's name cannot be resolved"
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # a kind of TimeoutError, to urllib3
        cause = error.__cause__
        return str(getattr(cause, "strerror", None) or "no connection can be made").lower()
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "it did not answer in time"
    if isinstance(error, urllib3.exceptions.ProxySchemeUnknown):
        return "its proxy's URL must begin with http:// or https://"
    if isinstance(error, urllib3.exceptions.SSLError):
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in error.args):
            return "its TLS certificate is not valid"
        return "the TLS handshake failed; is it an http:// URL?"
    return "the connection broke off"


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

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Job[T]:
        return get_background_loop().submit(coroutine)

    def detach(self, coroutine: Coroutine[Any, Any, T]) -> Job[T]:
        return get_background_loop().submit(coroutine)

    async def wait(self, job: Job[Any], seconds: float) -> bool:
        assert isinstance(job, concurrent.futures.Future)
        return bool(concurrent.futures.wait([job], seconds).done)


class AsyncIO:
    """Waits in the running event loop."""

    async def request(self, request: Request) -> Response:
        return await asyncio.get_running_loop().run_in_executor(_connections.executor(), send, request)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def resolve(self, value: Awaitable[T]) -> Awaitable[T]:
        return value

    async def compute(self, function: Callable[[], T], executor: Executor | None = None) -> T:
        if executor is None:
            return await asyncio.to_thread(function)
        return await asyncio.get_running_loop().run_in_executor(executor, function)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Job[T]:
        job = asyncio.ensure_future(coroutine)
        starter = asyncio.current_task()
        assert starter is not None
        # If the client disconnects, servers cancel the task that writes, but not all close the generator it reads.
        starter.add_done_callback(lambda _: job.cancel())
        return job

    def detach(self, coroutine: Coroutine[Any, Any, T]) -> Job[T]:
        return asyncio.get_running_loop().create_task(coroutine)

    async def wait(self, job: Job[Any], seconds: float) -> bool:
        assert isinstance(job, asyncio.Future)
        return bool((await asyncio.wait([job], timeout=seconds))[0])


async def request_with_keys(io: IO, request: Request, keys: tuple[str | None, str | None]) -> Response:
    """Send a request with the bearer token of the signing key.

    If it is refused, send it with that of the fallback key.
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
    return Request(request.method, request.url, headers, request.body, request.timeout)
