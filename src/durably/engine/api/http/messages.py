"""Bodies of requests and answers.

Limits of size and time, answers in JSON, errors as answers.
"""

import asyncio
import datetime as dt
import logging
import zlib
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from durably.engine.api.operations import ArgumentInvalidError
from durably.engine.model.subscriptions import SparseLog
from durably.protocol import engine_errors as errors
from durably.protocol.events import Envelope, ErrorBody, Metadata
from durably.protocol.limits import MAX_REQUEST_BYTES
from durably.protocol.text import get_logger

from .codec import status_of

_GRACE_SECONDS = 30.0
_LEAST_BYTES_PER_SECOND = 16 * 1024
"""A body may take ``_GRACE_SECONDS``, or longer if it arrives at this rate (bytes per second)."""
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
"""zlib's ``wbits`` that detect either format by its header."""

_encoder = msgspec.json.Encoder()
_logger = get_logger("durably.engine.api")
_refusals: WeakKeyDictionary[web.Application, SparseLog] = WeakKeyDictionary()


class ApiError(Exception):
    """Ends a request with ``status`` and an error body.

    ``message`` is shown to the client, so it must not contain secrets.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def explain_stop(error: errors.EngineError) -> str:
    """The message about an engine that lost its database.

    It is the same whether the engine or a request detects the loss.
    """
    return f"the engine has stopped: {error.message}"


# requests


async def read_body(request: web.Request, limit: int = MAX_REQUEST_BYTES) -> bytes:
    """The whole body, decompressed.

    Call it after the access check, because a few bytes may decompress to ``limit``. Raises ``ApiError``: 413 above
    ``limit``, 408 if it arrives too slowly, 415 for an encoding other than gzip and deflate, 400 if it does not match
    its headers.
    """
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    if encoding not in ("identity", "gzip", "deflate", ""):
        raise ApiError(415, f"the content-encoding {encoding!r} is unknown; send the body uncompressed, or with gzip")
    if (request.content_length or 0) > limit:
        raise ApiError(413, f"the body is larger than {limit} bytes")
    body = bytearray()
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(began + _GRACE_SECONDS) as deadline:
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > limit:
                    raise ApiError(413, f"the body is larger than {limit} bytes")
                deadline.reschedule(began + _GRACE_SECONDS + len(body) / _LEAST_BYTES_PER_SECOND)
    except TimeoutError:
        raise ApiError(
            408, f"the body arrives too slowly: {len(body)} bytes in over {_GRACE_SECONDS:g} s; send it again"
        ) from None
    except ConnectionResetError:
        raise ApiError(400, "the client closed the connection before the end of the body") from None
    except web.RequestPayloadError:
        raise ApiError(400, "the body cannot be read: it does not match its length") from None
    return bytes(body) if encoding in ("identity", "") else await asyncio.to_thread(_unpack, bytes(body), limit)


def _unpack(body: bytes, limit: int) -> bytes:
    """The body of a request, decompressed.

    Raises ``ApiError``: 413 above ``limit``, 400 if the body is not of this encoding.
    """
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        unpacked = b""
    if len(unpacked) > limit:
        raise ApiError(413, f"the body is larger than {limit} bytes when it is decompressed")
    if not unpacker.eof or unpacker.unused_data:
        raise ApiError(400, "the body cannot be decompressed: it does not match its content-encoding")
    return unpacked


async def answer_expectation(request: web.Request) -> web.StreamResponse | None:
    """The answer to a route's ``Expect`` header (RFC 9110 §10.1.1).

    ``None`` to continue.
    """
    if request.version < HttpVersion11:
        return None
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        return error_response(417, "the only supported expectation is 100-continue")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # The answer itself has not begun.
    return None


# answers


def json_response(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=_encoder.encode(body), status=status, content_type="application/json")


def data_response(data: Any) -> web.Response:
    return json_response(Envelope(data=data, metadata=Metadata(fetched_at=dt.datetime.now(dt.UTC))))


def error_response(status: int, message: str, *, code: str | None = None, data: Any = None) -> web.Response:
    # A message may quote bytes of a request that are not UTF-8. They are surrogates, which JSON cannot contain.
    text = message.encode(errors="replace").decode()
    return json_response(ErrorBody(error=text, status=status, code=code, data=data), status)


def answer_error(request: web.Request, error: Exception) -> web.Response:
    """The answer to a request that has failed.

    The ``code`` of an engine's error is its class.
    """
    match error:
        case ApiError():
            return error_response(error.status, error.message, code=error.code)
        case ArgumentInvalidError():
            return error_response(400, str(error))
        case errors.EngineError():
            if isinstance(error, errors.DatabaseUnavailableError):
                _log_unavailable(request.app, error)
            status = status_of(error)
            data = dict(request.match_info) if status in (409, 413) else None
            return error_response(status, error.message, code=type(error).__name__, data=data)
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return error_response(405, f"the method must be {allowed}, not {request.method}")
        case web.HTTPNotFound():
            return error_response(404, f"there is nothing at {request.path}")
    # The route, not the path: the path of an event contains the event key.
    resource = request.match_info.route.resource
    _logger.error("%s %s failed", request.method, resource.canonical if resource else "(unknown)", exc_info=error)
    return error_response(500, "the engine failed to handle the request; its log says why")


def _log_unavailable(app: web.Application, error: errors.DatabaseUnavailableError) -> None:
    """Log for the engine's operator that requests are refused.

    Senders get the answer. The log is rate-limited, because its disk may be the full one.
    """
    log = _refusals.setdefault(app, SparseLog(_logger))
    log.log(logging.ERROR, "requests are refused with 503, so that they are sent again: %s", error.message)


SERVER_LOGGER = get_logger("durably.engine.api.http")
"""For aiohttp's server. Its lines report that a request could not be read, and do not quote it."""


class _WithoutContent(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.exc_info = record.exc_text = None
            record.msg, record.args = "a request was not HTTP, and was refused: %s", (type(error).__name__,)
        elif isinstance(error, web.RequestPayloadError):  # It has been answered. aiohttp is reading the rest.
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.msg, record.args = "a request's body did not match its headers, and was refused", ()
        return True


SERVER_LOGGER.addFilter(_WithoutContent())
