"""``CommRequest`` and ``CommResponse``: requests and responses of any framework, also streamed."""

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from durably.errors import (
    Error,
    FunctionConfigInvalidError,
    FunctionNotServedError,
    MethodUnsupportedError,
    QueryParamInvalidError,
    URLInvalidError,
)
from durably.execution import Outcome, drive
from durably.functions.step_results import Timings
from durably.io.http_client import IO, Job
from durably.protocol.errors import ErrorCode
from durably.protocol.headers import DISCOVER, Header, Probe, Query, ServerKind
from durably.protocol.text import redact_url
from durably.settings import DEFAULT_SERVE_PATH, Environment, Streaming, check_serve_path, parse_url

from . import answers


class CommRequest:
    """A request from an adapter.

    ``headers`` may be in any case; ``query_params`` may have lists of values, whose first value is used;
    ``raw_request`` is the framework's request, for middleware. ``request_url`` may be a function that returns the
    URL, because frameworks build it slowly and calls do not need it; the attribute is text.
    ``has_trusted_url`` says that the URL comes from the platform, not from the request's headers.
    ``serve_origin``, ``serve_path`` and ``public_path`` override those of the handler. ``is_connect``: the request came
    over an authenticated connection, so it is not signed.
    """

    def __init__(
        self,
        *,
        body: bytes,
        headers: Mapping[str, str],
        query_params: Mapping[str, str] | Mapping[str, Sequence[str]],
        raw_request: object,
        request_url: str | Callable[[], str],
        serve_origin: str | None = None,
        serve_path: str | None = None,
        public_path: str | None = None,
        has_trusted_url: bool = False,
        is_connect: bool = False,
        timings: Timings | None = None,
    ) -> None:
        self.body = body
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.query_params = query_params
        self.raw_request = raw_request
        self._request_url = request_url
        self.serve_origin = serve_origin
        self.serve_path = serve_path
        self.public_path = public_path
        self.has_trusted_url = has_trusted_url
        self.is_connect = is_connect
        self.timings = timings or Timings()

    @property
    def request_url(self) -> str:
        """The URL of the request. Raises ``URLInvalidError`` if its headers (``Host``) make none."""
        if not isinstance(self._request_url, str):
            try:
                self._request_url = self._request_url()
            except Exception as error:  # frameworks raise different errors for such headers
                raise URLInvalidError(f"the request's headers make no URL: {type(error).__name__}") from None
        return self._request_url

    def header(self, name: Header) -> str | None:
        return self.headers.get(name) or None

    def query(self, name: Query) -> str | None:
        value = self.query_params.get(name)
        if isinstance(value, str) or value is None:
            return value or None
        return (value[0] or None) if value else None

    @property
    def target(self) -> str | None:
        """The hashed id of the step that the call targets, ``None`` to discover."""
        step_id = self.query(Query.STEP_ID)
        return None if step_id == DISCOVER else step_id

    @property
    def probe(self) -> Probe | None:
        """Raises ``QueryParamInvalidError`` for unknown ones."""
        value = self.query(Query.PROBE)
        if value is None:
            return None
        try:
            return Probe(value)
        except ValueError:
            raise QueryParamInvalidError(f'unknown probe "{value}"; known is "{Probe.TRUST.value}"') from None

    @property
    def server_kind(self) -> ServerKind | None:
        try:
            return ServerKind(self.headers.get(Header.SERVER_KIND.value, ""))
        except ValueError:
            return None


_STATUS_OF_CODE = {
    ErrorCode.BODY_INVALID: HTTPStatus.BAD_REQUEST,
    ErrorCode.BODY_LENGTH_MISSING: HTTPStatus.LENGTH_REQUIRED,
    ErrorCode.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.BROWSER_REFUSED: HTTPStatus.FORBIDDEN,
    ErrorCode.CALL_MISMATCH: HTTPStatus.BAD_REQUEST,
    ErrorCode.HEADER_MISSING: HTTPStatus.UNAUTHORIZED,
    ErrorCode.METHOD_UNSUPPORTED: HTTPStatus.METHOD_NOT_ALLOWED,
    ErrorCode.QUERY_PARAM_INVALID: HTTPStatus.BAD_REQUEST,
    ErrorCode.QUERY_PARAM_MISSING: HTTPStatus.BAD_REQUEST,
    ErrorCode.SERVE_ORIGIN_MISSING: HTTPStatus.BAD_REQUEST,
    ErrorCode.SERVER_KIND_MISMATCH: HTTPStatus.BAD_REQUEST,
    ErrorCode.SIG_VERIFICATION_FAILED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.SIGNING_KEY_UNSPECIFIED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.SYNC_TOO_SOON: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.URL_INVALID: HTTPStatus.BAD_REQUEST,
}
"""Statuses of refused requests; anything else is a 500, as for a function that is not found (spec §4.4.1)."""

Stream = AsyncGenerator[bytes, None]


@dataclass(kw_only=True)
class CommResponse:
    """A response for adapters to write: ``body``, or the chunks of ``stream`` if that is set.

    ``body`` is always bytes, empty for a streamed response. Header names are lower-case.
    """

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status_code: int = HTTPStatus.OK
    stream: Callable[[], Stream] | None = None

    @classmethod
    def from_json(
        cls, value: Any, *, headers: dict[str, str] | None = None, status_code: int = HTTPStatus.OK
    ) -> "CommResponse":
        """A response whose body is ``value`` as JSON."""
        return cls(body=msgspec.json.encode(value), headers=headers or {}, status_code=status_code)

    @property
    def no_retry(self) -> bool:
        return self.headers.get(Header.NO_RETRY.value) == "true"

    @property
    def request_version(self) -> int | None:
        value = self.headers.get(Header.REQUEST_VERSION.value, "")
        return int(value) if value.isdigit() else None

    @property
    def retry_after(self) -> str | None:
        return self.headers.get(Header.RETRY_AFTER.value)

    @property
    def sdk_version(self) -> str | None:
        return self.headers.get(Header.SDK.value)

    @classmethod
    def from_call_result(cls, outcome: Outcome) -> "CommResponse":
        """The answer to a call (spec §4.4.3, §5.1.1)."""
        answer = answers.encode(outcome)
        return cls(body=answer.body, headers=answer.headers, status_code=answer.status)

    @classmethod
    def from_error(cls, error: Exception) -> "CommResponse":
        """The answer to a request that was refused, without any traceback of ours.

        What is not an ``Error`` of ours was not meant for others to read, so it is only named.
        """
        if not isinstance(error, Error):
            error = Error(f"the app could not answer ({type(error).__name__}); its log says why")
        body = {"code": error.code.value, "message": error.message, "name": error.name}
        status = _STATUS_OF_CODE.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
        return cls.from_json(body, headers=_headers_of(error), status_code=status)

    @classmethod
    def create_streaming(cls, stream: Callable[[], Stream]) -> "CommResponse":
        """An answer whose chunks keep the connection alive until the call has ended (spec §9)."""
        return cls(stream=stream, status_code=HTTPStatus.CREATED)

    def body_bytes(self) -> bytes:
        """``body``, under its name in other SDKs of the protocol."""
        return self.body

    def stream_sync(self) -> Generator[bytes, None, None]:
        """``stream`` for frameworks that write in a thread; it must block instead of waiting."""
        assert self.stream is not None
        chunks = self.stream()
        try:
            while True:
                yield drive(chunks.__anext__())
        except StopAsyncIteration:
            return
        finally:
            drive(chunks.aclose())


def _headers_of(error: Error) -> dict[str, str]:
    match error:
        case FunctionNotServedError():
            return {Header.NO_RETRY.value: "false"}  # a deployment may be under way
        case MethodUnsupportedError():
            return {"allow": error.allowed}
        case _:
            return {}


def mount_path(serve_path: str | None) -> str:
    """The path of the endpoint, with its leading slash: the argument, ``DURABLY_SERVE_PATH``, or the default.

    Raises ``FunctionConfigInvalidError``.
    """
    return with_slash(read_path(serve_path, "serve_path") or Environment().serve_path or DEFAULT_SERVE_PATH)


def read_path(path: str | None, argument: str) -> str | None:
    """An argument that is a path. Raises ``FunctionConfigInvalidError``."""
    return check_serve_path(path, argument) if path else None


def with_slash(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def read_origin(text: str, what: str) -> tuple[str, str]:
    """Scheme and network location of a URL.

    Raises ``URLInvalidError``, which names ``what``.
    """
    parts = urlsplit(parse_url(text, what))
    return parts.scheme, parts.netloc


def read_serve_origin(text: str, what: str) -> tuple[str, str]:
    """Scheme and network location of an origin, which has no path.

    Raises ``URLInvalidError``, which names ``what``.
    """
    origin = read_origin(text, what)
    parts = urlsplit(parse_url(text, what))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise URLInvalidError(
            f"{what} is {redact_url(urlunsplit(parts))!r}, which is more than an origin: write only its scheme and "
            "host, and the rest in serve_path (DURABLY_SERVE_PATH) or, behind a proxy that rewrites paths, public_path"
        )
    return origin


KEEP_ALIVE_SECONDS = 3.0

StreamingOption = Streaming | str | bool | None
"""Values that adapters accept as ``streaming``."""


def read_streaming(option: StreamingOption) -> Streaming | None:
    """``None`` means the environment decides. Raises ``FunctionConfigInvalidError``."""
    if option is None or isinstance(option, Streaming):
        return option
    if isinstance(option, bool):
        return Streaming.FORCE if option else Streaming.DISABLE
    try:
        return Streaming(option)
    except ValueError:
        raise FunctionConfigInvalidError(
            f'serve takes durably.Streaming.FORCE, "force" or True as its streaming (or Streaming.DISABLE, "disable", '
            f"False), not {option!r}"
        ) from None


async def stream(start: Callable[[], Job[CommResponse]], io: IO) -> AsyncGenerator[bytes, None]:
    """The chunks of one answer, which ``start`` begins to make.

    It is started here and cancelled here: a reader who goes away, even before the first chunk, leaves
    nothing running.
    """
    job = start()
    try:
        yield b" "
        while not await io.wait(job, KEEP_ALIVE_SECONDS):
            yield b" "
        yield _envelope(job.result())
    finally:
        job.cancel()


def _envelope(response: CommResponse) -> bytes:
    return msgspec.json.encode(
        {
            "status": int(response.status_code),
            "headers": response.headers,
            "body": response.body.decode(),
        }
    )
