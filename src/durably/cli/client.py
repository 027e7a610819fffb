"""The connection of a command to an engine: HTTP, a Unix socket, or a Temporal server."""

import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from durably.embedded import sockets
from durably.engine.api.codec import (
    ANY_EVENT_KEY,
    HttpEngine,
    HttpRequest,
    HttpResponse,
    NotAnEngineError,
    decoder_of,
    from_wire,
    status_of,
)
from durably.engine.api.interface import SyncEngine
from durably.engine.api.operations import Operation
from durably.engine.model.overview import LogState
from durably.engine.model.runs import RunUpdate
from durably.io.http_connections import failure_reason
from durably.protocol.engine_errors import EngineError
from durably.protocol.events import AppSyncBody, Envelope, ErrorBody, Event, EventReceipt
from durably.protocol.signatures import bearer_token
from durably.protocol.text import printable, redact_url, redact_urls
from durably.settings import ENGINE_URL

from .text import CliError, echo, style

T = TypeVar("T")
TIMEOUT_SECONDS = 30.0
NOT_UNICODE = "the data holds text that is not valid Unicode: half of a surrogate pair"


class AnswerError(CliError):
    """The engine refused. ``status`` is the HTTP status, 0 if it is not known."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class EngineUnreachedError(CliError):
    """No engine answers."""


class EngineClient(SyncEngine):
    """Has the operations of an engine, such as ``client.get_run_sync(run_id)``.

    Raises ``EngineUnreachedError``, and ``AnswerError`` for refusals and for what does not exist.
    """

    def send_event(self, event: Event) -> EventReceipt:
        try:
            body = msgspec.json.encode(event)
        except UnicodeEncodeError:
            raise CliError(NOT_UNICODE) from None
        return self.block(self.receive_events(body))

    def sync_app_at(self, url: str) -> AppSyncBody:
        """Ask the engine to sync the app at a URL.

        The status of an error is 502 if the app does not answer.
        """
        raise NotImplementedError

    def check_ready(self) -> LogState | None:
        """The state of the engine's commit log, if it has one.

        Raises an error if the engine does not answer, or does not take events.
        """
        raise NotImplementedError

    def updates(self, *, function_id: str | None, on_connected: Callable[[], None]) -> Iterator[RunUpdate]:
        """Future changes of runs, until the engine stops.

        ``on_connected`` is called first.
        """
        raise NotImplementedError


def existing(value: T | None) -> T:
    """A result of ``EngineClient``, which raises an error for what does not exist."""
    assert value is not None
    return value


def echo_notes(client: EngineClient) -> None:
    """Print notes on the lists of this kind of engine, beside the output."""
    for note in client.describe_engine_sync().notes:
        echo(style(note, dim=True), err=True)


def is_short_id(text: str) -> bool:
    """Whether the text may be the end of an id, as `durably dev` prints it."""
    return len(text) < 26 and text.isascii() and text.isalnum()


def only_id(kind: str, text: str, found: Sequence[str]) -> str:
    """The only element of ``found``, ids that end with ``text``.

    ``kind`` is run or event. Raises ``CliError`` if there are none or several.
    """
    if not found:
        raise CliError(
            f"no {kind} has the id {text!r}, or an id that ends with it; `durably {kind}s list` lists {kind}s"
        )
    if len(found) > 1:
        ids = ", ".join(found)
        raise CliError(f"several {kind}s have ids that end with {text!r}: {ids}; give more characters of the id")
    return found[0]


_DEVELOPMENT_ADVICE = "Start one with `durably dev`, or say where it is with --url."
_PRODUCTION_ADVICE = f"Is `durably start` running there? Its URL comes from --url or {ENGINE_URL.name}."


class _Ready(msgspec.Struct):
    log: LogState | None = None


class HttpClient(HttpEngine, EngineClient):
    """An ``EngineClient`` over HTTP.

    ``signing_keys`` are tried in order while the engine answers 401 or 403. ``database`` is that of an engine in an
    app's own processes, which is reached by a socket in place of ``url``.
    """

    def __init__(
        self,
        url: str,
        *,
        signing_keys: Sequence[str] = (),
        event_key: str | None = None,
        database: Path | None = None,
        is_development: bool = True,
    ) -> None:
        super().__init__(self._exchange_blocking, event_key=event_key or ANY_EVENT_KEY)
        self.url = url.rstrip("/")
        self._place = f"at {redact_url(self.url)}" if database is None else f"on {database}"
        self._tokens = [bearer_token(key) for key in signing_keys]
        # Advice if no engine answers.
        self._advice = _DEVELOPMENT_ADVICE if is_development else _PRODUCTION_ADVICE
        timeout = urllib3.Timeout(connect=5.0, read=TIMEOUT_SECONDS)
        self._pool: urllib3.PoolManager | urllib3.HTTPConnectionPool
        if database is None:
            self._pool = urllib3.PoolManager(retries=False, timeout=timeout)
        else:
            self.url, self._pool = "", SocketPool(database, timeout)
            self._advice = "Start the app that has its Embedded(…) there."

    def block(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that never suspends."""
        try:
            coroutine.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result
        raise AssertionError("an exchange of the command line does not suspend")

    async def execute(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        try:
            result = await super().execute(operation, arguments)
        except NotAnEngineError:
            raise self._foreign() from None
        except EngineError as error:
            raise AnswerError(printable(error.message), getattr(error, "status", None) or status_of(error)) from None
        except UnicodeEncodeError:  # "\ud800" is valid in JSON, but half of a character
            raise CliError(NOT_UNICODE) from None
        if result is None and operation.missing is not None:
            raise AnswerError(operation.missing.format_map(arguments), HTTPStatus.NOT_FOUND)
        return result

    def sync_app_at(self, url: str) -> AppSyncBody:
        headers, body = {"content-type": "application/json"}, msgspec.json.encode({"url": url})
        request = HttpRequest("POST", "/v1/apps/sync", headers, body)
        return self._decode(self._send(request).data, Envelope[AppSyncBody]).data

    def check_ready(self) -> LogState | None:
        return self._decode(self._send(HttpRequest("GET", "/ready")).data, _Ready).log

    def updates(self, *, function_id: str | None, on_connected: Callable[[], None]) -> Iterator[RunUpdate]:
        query = f"?{urlencode({'function_id': function_id})}" if function_id else ""
        response = self._send(HttpRequest("GET", f"/v1/updates{query}"), preload_content=False)
        on_connected()
        decode = decoder_of(RunUpdate).decode
        try:
            for line in _lines(response):
                if line:
                    yield from_wire(decode(line))
        except urllib3.exceptions.HTTPError as error:
            raise self._unreached(redact_urls(error)) from None
        finally:
            response.release_conn()
            response.close()

    # exchanges

    async def _exchange_blocking(self, request: HttpRequest) -> HttpResponse:
        response = self._send(request, may_raise=False)
        return HttpResponse(response.status, response.data)

    def _send(
        self, request: HttpRequest, *, preload_content: bool = True, may_raise: bool = True
    ) -> urllib3.BaseHTTPResponse:
        """Send a request; try each signing key in turn while the engine refuses it.

        With ``may_raise``, raises ``AnswerError`` if the last answer is an error.
        """
        first, *others = [{"authorization": f"Bearer {token}"} for token in self._tokens] or [{}]
        response = self._attempt(request, first, preload_content)
        for headers in others:
            if response.status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                break
            response = self._attempt(request, headers, preload_content)
        if may_raise and response.status >= 400:
            raise self._read_error(response)
        return response

    def _attempt(
        self, request: HttpRequest, headers: dict[str, str], preload_content: bool
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(
                request.method,
                self.url + request.target,
                body=request.body,
                headers=request.headers | headers,
                preload_content=preload_content,
            )
        except (
            urllib3.exceptions.NewConnectionError,
            urllib3.exceptions.SSLError,
        ) as error:  # Before the timeouts: urllib3 has it among them.
            raise self._unreached(failure_reason(error)) from None
        except urllib3.exceptions.TimeoutError:
            raise self._unreached(f"no answer within {TIMEOUT_SECONDS:.0f} s") from None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise self._unreached(redact_urls(error)) from None

    def _unreached(self, reason: str) -> EngineUnreachedError:
        return EngineUnreachedError(f"no engine answers {self._place} ({reason})\n{self._advice}")

    def _read_error(self, response: urllib3.BaseHTTPResponse) -> AnswerError:
        try:
            body = msgspec.json.decode(response.data, type=ErrorBody)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._foreign() from None
        return AnswerError(printable(body.error), response.status)

    def _foreign(self) -> CliError:
        return CliError(f"what answers {self._place} is not an engine of Durably")

    def _decode(self, answer: bytes, as_type: type[T]) -> T:
        try:
            return msgspec.json.decode(answer, type=as_type)
        except msgspec.DecodeError:
            raise self._foreign() from None


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The lines of a streamed body. Empty lines keep the connection alive."""
    rest = b""
    for chunk in response.stream(65_536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


class _SocketConnection(HTTPConnection):
    def __init__(self, *args: Any, path: Path, **options: Any) -> None:
        super().__init__(*args, **options)
        self._path = path

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(5.0)
            with sockets.address_of(self._path) as address:
                connection.connect(address)
        except OSError as error:
            connection.close()
            raise urllib3.exceptions.NewConnectionError(self, str(error)) from error
        return connection


class SocketPool(HTTPConnectionPool):
    """A pool of HTTP connections to the socket of a database's leader.

    Raises ``CliError`` if no process has ever led the database, or its path is wrong.
    """

    ConnectionCls = _SocketConnection  # pyright: ignore[reportAssignmentType] (so it is in urllib3 itself)

    def __init__(self, database: Path, timeout: urllib3.Timeout) -> None:
        path = Path(database).resolve()
        directory = sockets.directory_of(path)
        newest = sockets.newest(directory)
        if newest is not None:
            sockets.check_directory(directory, path.stat().st_uid)
        if newest is None:
            raise CliError(
                f"no app runs its engine on {database}: start the app, or check that this is what its Embedded(…) says"
            )
        # A leader that starts, or was alone until now, takes a moment until it serves HTTP.
        starting = urllib3.Retry(
            100,
            connect=0,
            read=0,
            other=0,
            allowed_methods=None,
            backoff_factor=0.05,
            backoff_max=0.1,
            raise_on_status=False,
        )
        super().__init__("localhost", retries=starting, timeout=timeout, path=newest)
