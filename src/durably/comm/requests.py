"""``CommRequest`` and ``CommResponse``: requests and responses of any framework.

The module also has answers to calls, and streamed answers.
"""

import datetime as dt
import math
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

from durably.errors import (
    Error,
    FunctionNotServedError,
    MethodUnsupportedError,
    OutputUnserializableError,
    QueryParamInvalidError,
    RetryAfterError,
    URLInvalidError,
)
from durably.execution import FoundSteps, Outcome, Raised, StepReport, drive
from durably.io.http_client import IO, PendingResult
from durably.protocol.durations import format_timestamp
from durably.protocol.errors import ErrorCode, describe_error, is_retriable
from durably.protocol.headers import Header, Probe, Query, ServerKind
from durably.protocol.opcodes import RETRY_AFTER_OPT, Op
from durably.values.outputs import encode_output, finish


class CommRequest:
    """A request from an adapter.

    - ``headers``: Names in any case.
    - ``query_params``: May have lists of values. The first value is used.
    - ``raw_request``: The framework's request, for middleware.
    - ``request_url``: The URL, or a function that returns it. Frameworks build it slowly, and calls do not need it. The
      attribute is a string.
    - ``has_trusted_url``: The URL comes from the platform, not from the request's headers.
    - ``serve_origin``, ``serve_path``, ``public_path``: Override those of the handler.
    - ``is_connect``: The request came over an authenticated connection, so it is not signed.
    - ``has_lower_names``: The names of ``headers`` are in lower case.
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
        has_lower_names: bool = False,
    ) -> None:
        self.body = body
        self.headers = headers if has_lower_names else {name.lower(): value for name, value in headers.items()}
        self.query_params = query_params
        self.raw_request = raw_request
        self._request_url = request_url
        self.serve_origin = serve_origin
        self.serve_path = serve_path
        self.public_path = public_path
        self.has_trusted_url = has_trusted_url
        self.is_connect = is_connect
        self.seconds: dict[str, float] = {}
        """Durations of the request's parts, in the order in which the parts began."""

    @property
    def request_url(self) -> str:
        """The URL of the request.

        Raises ``URLInvalidError`` if the ``Host`` header is invalid.
        """
        if not isinstance(self._request_url, str):
            try:
                self._request_url = self._request_url()
            except Exception as error:  # frameworks raise different errors for such headers
                raise URLInvalidError(
                    f"cannot build the request's URL from its headers (Host): {type(error).__name__}"
                ) from None
        return self._request_url

    def query(self, name: str) -> str | None:
        value = self.query_params.get(name)
        if isinstance(value, str) or value is None:
            return value or None
        return (value[0] or None) if value else None

    @property
    def probe(self) -> Probe | None:
        """The requested probe. Raises ``QueryParamInvalidError`` for unknown ones."""
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
    """A response for adapters to write.

    Its content is ``body``, or the chunks of ``stream`` if that is set. ``body`` is always bytes, empty for a streamed
    response. Header names are in lower case.
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
        """The answer to a call: status, headers, JSON (spec §4.4.3, §5.1.1)."""
        if isinstance(outcome, FoundSteps):
            return _found(outcome.reports)
        if isinstance(outcome, Raised):
            return _raised(outcome.error)
        try:
            return cls(body=encode_output(outcome.value, outcome.source))
        except OutputUnserializableError as error:
            return _raised(error)

    @classmethod
    def from_error(cls, error: Exception) -> "CommResponse":
        """The answer to a refused request, without a traceback.

        For other exceptions than ``durably.errors.Error`` only the class name is shown, because the message may contain
        secrets.
        """
        if not isinstance(error, Error):
            error = Error(f"the app could not answer ({type(error).__name__}); its log says why")
        body = {"code": error.code.value, "message": error.message, "name": error.name}
        status = _STATUS_OF_CODE.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
        headers: dict[str, str] = {}
        if isinstance(error, FunctionNotServedError):
            headers[Header.NO_RETRY.value] = "false"  # a deployment may be under way
        elif isinstance(error, MethodUnsupportedError):
            headers["allow"] = error.allowed
        return cls.from_json(body, headers=headers, status_code=status)

    @classmethod
    def create_streaming(cls, stream: Callable[[], Stream]) -> "CommResponse":
        """A streamed answer (spec §9).

        Its chunks keep the connection alive until the call has ended.
        """
        return cls(stream=stream, status_code=HTTPStatus.CREATED)

    def stream_sync(self) -> Generator[bytes, None, None]:
        """``stream`` for frameworks that write in a thread. It blocks instead of waiting."""
        assert self.stream is not None
        chunks = self.stream()
        try:
            while True:
                yield drive(chunks.__anext__())
        except StopAsyncIteration:
            return
        finally:
            drive(chunks.aclose())


# -- answers to calls


def _found(reports: Sequence[StepReport]) -> CommResponse:
    failed: list[StepReport] = []
    ops: list[Op] = []
    for report in reports:
        finish(report)
        ops.append(report.op)
        if report.error is not None:
            failed.append(report)
    headers: dict[str, str] = {}
    if len(failed) == 1 and failed[0].error is not None:
        headers = _retry_headers(failed[0].error)
    elif failed:
        state_retries(failed)
    return CommResponse(body=msgspec.json.encode(ops), headers=headers, status_code=HTTPStatus.PARTIAL_CONTENT)


def _raised(error: BaseException) -> CommResponse:
    body = msgspec.json.encode(describe_error(error).to_wire())
    return CommResponse(body=body, headers=_retry_headers(error), status_code=HTTPStatus.INTERNAL_SERVER_ERROR)


def _retry_headers(error: BaseException) -> dict[str, str]:
    headers = {Header.NO_RETRY.value: "false" if is_retriable(error) else "true"}
    if isinstance(error, RetryAfterError):
        headers[Header.RETRY_AFTER.value] = retry_after_text(error)
    return headers


def retry_after_text(error: RetryAfterError) -> str:
    """The time of a retry as a string: whole seconds for a delay, or a timestamp.

    The engine adds the seconds to its own clock. A timestamp is sent unchanged.
    """
    delay = error.retry_after
    return format_timestamp(delay) if isinstance(delay, dt.datetime) else str(max(0, math.ceil(delay.total_seconds())))


def state_retries(failed: Sequence[StepReport]) -> None:
    """Add to each op when to retry its step.

    Headers describe the whole answer. This is an addition to the protocol, like calls that execute several steps.
    """
    for report in failed:
        if isinstance(report.error, RetryAfterError):
            report.op.opts = {**(report.op.opts or {}), RETRY_AFTER_OPT: retry_after_text(report.error)}


# -- streamed answers

KEEP_ALIVE_SECONDS = 3.0


async def stream(start: Callable[[], PendingResult[CommResponse]], io: IO) -> AsyncGenerator[bytes, None]:
    """The chunks of one answer, which ``start`` begins to make.

    The job is started and cancelled here. If the client disconnects, even before the first chunk, no job remains.
    """
    job = start()
    try:
        yield b" "
        while not await io.wait(job, KEEP_ALIVE_SECONDS):
            yield b" "
        answer = job.result()
        envelope = {"status": int(answer.status_code), "headers": answer.headers, "body": answer.body.decode()}
        yield msgspec.json.encode(envelope)
    finally:
        job.cancel()
