"""Streams of channels to browsers, independent of frameworks: server-sent events, access, limits.

A browser opens ``GET /streams?channel=RUN_ID``, with ``topic=…`` for some topics, or ``?token=…``, which names both.
Each message is an event of the type ``run``, ``step``, ``progress``, ``gap`` or ``message``. The stream of a run ends
after the run: its last id makes the answer to the browser's next request 204, after which it does not ask again.

Other streams end when the server stops, when the token expires, and after 15 minutes. The browser then continues after
the last id, and is authorised again.
"""

import asyncio
import inspect
import re
import signal
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import msgspec

from durably.client import Client
from durably.errors import Error, EventInvalidError, FunctionConfigInvalidError, NotSupportedError, RunNotFoundError
from durably.execution.step import is_async
from durably.io.background_loop import CallBlocking, run_with_callbacks
from durably.protocol.channels import is_run_id
from durably.protocol.options import check_count, check_type
from durably.protocol.stream_tokens import StreamGrant, StreamTokenError, covers, verify_token
from durably.protocol.text import get_logger
from durably.settings import check_serve_path
from durably.streams import Listener, StreamMessage

Authorize = Callable[[Any, str], bool | Awaitable[bool]]

KEEP_ALIVE_SECONDS = 15.0
_THREAD_KEEP_ALIVE_SECONDS = 4.0
"""The same for a stream that holds a thread. A server notices at the second or third write that a client is gone."""
_LONGEST_SECONDS = 900.0
_STOP_CHECK_SECONDS = 0.5
_EXPIRY_MARGIN_SECONDS = 0.05
_RETRY_MILLISECONDS = 1_000
MAX_LISTENERS = 1_000
_MAX_LISTENERS_OF_POOL = 3
"""Under a WSGI server whose number of threads is unknown. waitress has 4 by default."""
_THREAD_PER_REQUEST = ("Werkzeug/", "WSGIServer/")
"""The development servers of Flask and Django."""
_MAX_LISTENERS_IN_DEVELOPMENT = 100
MAX_CHANNELS = 50
"""Of one stream."""
_MAX_QUERY_LENGTH = 8192
_END = "end"
"""The id after the last message of a run."""

_FIRST_POLL_SECONDS, _NEXT_POLL_SECONDS, _POLL_MILLISECONDS = 1.0, 0.2, 3_000
"""On a server with one thread: the wait for a first and for further messages, and the browser's pause."""

_HEADERS = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store, no-transform"),
    ("x-accel-buffering", "no"),  # nginx would keep the events back
    ("x-content-type-options", "nosniff"),
]
_TEXT_HEADERS = [("content-type", "text/plain; charset=utf-8"), ("cache-control", "no-store")]

_logger = get_logger("durably.streams")


@dataclass(frozen=True, kw_only=True)
class StreamRequest:
    """A request as an adapter passes it on.

    ``query`` is the undecoded query string. Names of ``headers`` are in lower case. ``raw_request`` is the framework's
    own request, for ``authorize``, and ``call_blocking`` runs a synchronous ``authorize`` in a thread of the framework.
    """

    method: str
    query: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    raw_request: Any = field(default=None, repr=False)
    call_blocking: CallBlocking | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class StreamResponse:
    """Status, headers and a body; or ``stream``, which yields chunks of a body until ``end`` is called."""

    status_code: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    stream: Callable[[], AsyncGenerator[bytes, None]] | None = None
    end: Callable[[], None] = lambda: None


class _EndedError(Exception):
    """The stream was ended."""


class _RefusalError(Exception):
    def __init__(self, status: HTTPStatus, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


_TOKEN = re.compile(r"((?:^|[?&])token=)[^&]*")


def hide_token(query: str) -> str:
    """A query string, or a URL, for logs."""
    return _TOKEN.sub(r"\1***", query)


def hide_token_of(environ: MutableMapping[str, Any]) -> None:
    """Remove the token from a request of WSGI, before the server logs it."""
    for name in ("QUERY_STRING", "RAW_URI"):  # the second under gunicorn
        if name in environ:
            environ[name] = hide_token(environ[name])


class Streams:
    """The streams of a client's channels at a path of a web app.

    - ``caller``: The function that users call, for errors.
    - ``raises``: The framework's errors that ``authorize`` may raise, for the framework to answer.
    """

    def __init__(
        self,
        client: Client,
        path: str,
        *,
        authorize: Authorize | None = None,
        allow_anonymous: bool = False,
        max_listeners: int | None = None,
        caller: str,
        raises: tuple[type[Exception], ...] = (),
    ) -> None:
        if not isinstance(client, Client):
            raise FunctionConfigInvalidError(f"{caller} takes a durably.Client as its client, not {client!r}")
        if not isinstance(allow_anonymous, bool) or (authorize is None) is not allow_anonymous:
            raise FunctionConfigInvalidError(
                f"{caller} needs a policy: give it either authorize=, a function of the request and a run's id (or "
                "another channel) that returns whether the visitor may read its messages, or allow_anonymous=True, "
                "with which everybody who knows a run's id can follow it"
            )
        if authorize is not None and not callable(authorize):
            raise FunctionConfigInvalidError(f"{caller}: authorize= must be a function, not {authorize!r}")
        if max_listeners is not None:
            check_count(max_listeners, f"{caller}(max_listeners=…)")
        check_type(path, f"{caller}(path=…)", str, 'a string, such as "/streams"', FunctionConfigInvalidError)
        self.path = "/" + check_serve_path(path, f"{caller}(path=…)").strip("/")
        self._client, self._authorize, self._raises = client, authorize, raises
        self._max_listeners = max_listeners
        self._open = weakref.WeakSet[_Stream]()
        """A stream that is never begun, and so never ended, is forgotten with its response."""
        self._watcher: asyncio.Task[None] | None = None

    async def handle(self, request: StreamRequest) -> StreamResponse:
        """The response, on an event loop. Only raises errors of ``raises``."""
        return await self._handle(request, self._max_listeners or MAX_LISTENERS, KEEP_ALIVE_SECONDS)

    def handle_sync(self, request: StreamRequest, environ: MutableMapping[str, Any]) -> StreamResponse:
        """The response, for a WSGI server, in which each stream holds a thread. ``authorize`` runs in this thread.

        On a server with one thread, the stream ends when no message is left. The token is removed from ``environ``,
        before gunicorn logs it.
        """
        if self._client.in_process is not None:
            self._client.in_process.refuse_to_block()
        limit = _spare_threads(environ)
        keep_alive = _THREAD_KEEP_ALIVE_SECONDS if limit else None
        if self._max_listeners is not None:
            is_pool_known = _gunicorn_threads() is not None
            limit = min(self._max_listeners, limit) if is_pool_known else self._max_listeners
        hide_token_of(environ)
        return run_with_callbacks(
            lambda call_blocking: self._handle(request, limit or 1, keep_alive, call_blocking=call_blocking)
        )

    async def _handle(
        self,
        request: StreamRequest,
        limit: int,
        keep_alive: float | None,
        *,
        call_blocking: CallBlocking | None = None,
    ) -> StreamResponse:
        try:
            if request.method != "GET":
                raise _RefusalError(HTTPStatus.METHOD_NOT_ALLOWED, "a stream is read with GET", ("allow", "GET"))
            if request.headers.get("last-event-id") == _END:
                return StreamResponse(status_code=HTTPStatus.NO_CONTENT, headers=[("cache-control", "no-store")])
            grant = await self._find_grant(request, call_blocking or request.call_blocking)
            if len(self._open) >= limit:
                raise _RefusalError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"this process has {limit} listeners, the most that it accepts: try again later, or raise "
                    "max_listeners= of streams and the server's number of threads or processes",
                    ("retry-after", "5"),
                )
            listener = Listener(
                self._client,
                grant.channels,
                topics=grant.topics,
                last_event_id=request.headers.get("last-event-id"),
                run_ids=filter(is_run_id, grant.channels),
            )
            # A little later than the expiry, so that the token is refused when the browser comes back with it.
            left = grant.expires - time.time() + _EXPIRY_MARGIN_SECONDS
            stream = _Stream(listener, self, min(left, _LONGEST_SECONDS), keep_alive)
            self._open.add(stream)
            await _open(listener)
        except _RefusalError as refusal:
            return StreamResponse(
                status_code=refusal.status, headers=[*_TEXT_HEADERS, *refusal.headers], body=f"{refusal}\n".encode()
            )
        self._watch()
        return StreamResponse(status_code=HTTPStatus.OK, headers=list(_HEADERS), stream=stream.iterate, end=stream.end)

    async def _find_grant(self, request: StreamRequest, call_blocking: CallBlocking | None) -> StreamGrant:
        """What the request may read, and wants to. Raises ``_RefusalError``, and errors of ``raises``."""
        if len(request.query) > _MAX_QUERY_LENGTH:
            raise _RefusalError(
                HTTPStatus.REQUEST_URI_TOO_LONG, f"the query is longer than {_MAX_QUERY_LENGTH} characters"
            )
        fields = parse_qs(request.query)
        channels, topics = list(dict.fromkeys(fields.get("channel", ()))), fields.get("topic")
        if len(channels) > MAX_CHANNELS:
            raise _RefusalError(HTTPStatus.BAD_REQUEST, f"a stream has at most {MAX_CHANNELS} channels")
        if "token" in fields:
            return self._check_token(fields["token"][0], channels, topics)
        if not channels:
            raise _RefusalError(
                HTTPStatus.BAD_REQUEST, "the URL of a stream names what to read: ?channel= with a run's id, or ?token="
            )
        for channel in channels:
            if not await self._may_read(request.raw_request, channel, call_blocking):
                raise _RefusalError(HTTPStatus.FORBIDDEN, "you are not allowed to read this stream")
        return StreamGrant(channels, topics, int(time.time() + _LONGEST_SECONDS))

    def _check_token(self, token: str, channels: list[str], topics: list[str] | None) -> StreamGrant:
        try:
            grant = verify_token(token, self._client.stream_keys(), time.time())
        except StreamTokenError as error:
            raise _RefusalError(HTTPStatus.UNAUTHORIZED, str(error), ("www-authenticate", "Bearer")) from None
        channels, topics = channels or grant.channels, topics or grant.topics
        if not covers(grant.channels, channels) or not covers(grant.topics, topics):
            raise _RefusalError(HTTPStatus.FORBIDDEN, "the token of the stream is for other channels or topics")
        return StreamGrant(channels, topics, grant.expires)

    async def _may_read(self, request: Any, channel: str, call_blocking: CallBlocking | None) -> bool:
        if (authorize := self._authorize) is None:
            return True
        try:
            if is_async(authorize):
                verdict: Any = authorize(request, channel)
            else:
                verdict = await (call_blocking or asyncio.to_thread)(lambda: authorize(request, channel))
            if inspect.isawaitable(verdict):
                verdict = await verdict
            if not isinstance(verdict, bool):
                raise TypeError(f"authorize= returned {type(verdict).__name__}: it must return True or False")
        except self._raises:
            raise
        except Exception:
            # Its message may have details for developers only, whatever its class.
            _logger.exception("authorize= of streams failed")
            raise _RefusalError(HTTPStatus.INTERNAL_SERVER_ERROR, "the app could not check access") from None
        return verdict

    def _watch(self) -> None:
        """End the streams when the server stops."""
        loop = asyncio.get_running_loop()
        if self._watcher is None or self._watcher.done() or self._watcher.get_loop() is not loop:
            self._watcher = loop.create_task(self._end_with_server())

    async def _end_with_server(self) -> None:
        while self._open:
            await asyncio.sleep(_STOP_CHECK_SECONDS)
            if _is_server_stopping():
                self.end()

    def end(self) -> None:
        """End the open streams, on their event loop."""
        for stream in list(self._open):
            stream.end()

    def forget(self, stream: "_Stream") -> None:
        self._open.discard(stream)


class _Stream:
    """The events of one listener.

    ``seconds`` is its longest duration, and ``keep_alive`` the time between comments. ``None`` ends it when no message
    is left.
    """

    def __init__(self, listener: Listener, streams: Streams, seconds: float, keep_alive: float | None) -> None:
        self._listener, self._streams, self._seconds, self._keep_alive = listener, streams, seconds, keep_alive
        # Servers do not begin the responses of clients that have already gone away.
        weakref.finalize(self, listener.close).atexit = False

    def end(self) -> None:
        """End after the messages that have arrived, on the event loop of the stream."""
        self._listener.fail(_EndedError())

    async def iterate(self) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._seconds
        wait, pause = self._keep_alive, _RETRY_MILLISECONDS
        if wait is None:
            wait, pause = _FIRST_POLL_SECONDS, _POLL_MILLISECONDS
        try:
            yield b"retry: %d\n\n" % pause
            while True:
                try:
                    async with asyncio.timeout(min(wait, ends - loop.time())):
                        messages = await self._listener.read()
                except TimeoutError:
                    if self._keep_alive is None or loop.time() >= ends:
                        return
                    yield b":\n\n"
                    continue
                if not messages:
                    yield b"id: %b\n\n" % _END.encode()
                    return
                yield _encode_all(messages)
                if self._keep_alive is None:
                    wait = _NEXT_POLL_SECONDS
        except _EndedError:
            return
        except Error as error:
            _logger.warning("a stream was interrupted, and the browser asks again: %s", error)
        finally:
            self._streams.forget(self)
            self._listener.close()


def encode(message: StreamMessage) -> bytes:
    """The server-sent event of a message. The engine's topics are types of events."""
    kind = _KINDS.get(message.topic, "message")
    data = msgspec.json.encode(
        {
            "channel": message.channel,
            "topic": message.topic,
            "data": message.json,
            "created_at": message.created_at,
        }
    )
    # Line ends would begin another field. In JSON they are only between its parts.
    data = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (message.id.encode(), kind.encode(), data)


_last: tuple[list[StreamMessage], bytes] = [], b""


def _encode_all(messages: list[StreamMessage]) -> bytes:
    """The events of messages. The listeners of a channel read the same ones in turn, so the last ones are kept."""
    global _last
    known, events = _last
    if known != messages:
        events = b"".join(map(encode, messages))
        _last = messages, events
    return events


_KINDS = {"$run": "run", "$step": "step", "$progress": "progress", "$gap": "gap"}


async def _open(listener: Listener) -> None:
    """Raises ``_RefusalError``."""
    try:
        await listener.open()
    except NotSupportedError as error:
        _logger.error("a browser asks for a stream: %s", error)
        raise _RefusalError(
            HTTPStatus.NOT_IMPLEMENTED, "the app's engine does not offer this stream: see the app's log"
        ) from None
    except RunNotFoundError as error:
        raise _RefusalError(HTTPStatus.NOT_FOUND, f"there is nothing to follow: {error}") from None
    except EventInvalidError as error:
        raise _RefusalError(HTTPStatus.BAD_REQUEST, str(error)) from None
    except Error as error:
        _logger.warning("a stream cannot begin: %s", error)
        raise _RefusalError(
            HTTPStatus.SERVICE_UNAVAILABLE, "the engine cannot answer at the moment", ("retry-after", "5")
        ) from None


# servers


def _server() -> Any:
    """The uvicorn server or gunicorn worker of this process, which handles the signal to stop; ``None`` for others."""
    return getattr(signal.getsignal(signal.SIGTERM), "__self__", None)


def _is_server_stopping() -> bool:
    """Whether uvicorn or gunicorn stops, and so waits for all responses to end."""
    server = _server()
    return getattr(server, "should_exit", False) is True or getattr(server, "alive", True) is False


def _gunicorn_threads() -> int | None:
    """The number of gunicorn's threads; ``None`` under other servers."""
    threads = getattr(getattr(_server(), "cfg", None), "threads", None)
    return threads if isinstance(threads, int) else None


def _spare_threads(environ: Mapping[str, Any]) -> int:
    """The number of threads of a WSGI server that streams may hold, without those that other requests need."""
    if not environ.get("wsgi.multithread", True):
        return 0
    if (threads := _gunicorn_threads()) is not None:
        return threads - 1
    is_unlimited = str(environ.get("SERVER_SOFTWARE", "")).startswith(_THREAD_PER_REQUEST)
    return _MAX_LISTENERS_IN_DEVELOPMENT if is_unlimited else _MAX_LISTENERS_OF_POOL
