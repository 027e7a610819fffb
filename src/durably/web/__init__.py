"""Requests and responses of web frameworks: one module for each framework.

``serve``, the dashboard and the gateway to Temporal use them, so that the code for a framework is in one module. The
modules read bodies up to a limit, find the mount point, route all paths and methods below it, and write responses.
"""

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import parse_qsl

from durably.errors import BodyInvalidError, BodyLengthMissingError, BodyTooLargeError
from durably.protocol.limits import MAX_REQUEST_BYTES

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
"""Methods that a server below a mount point answers, so that an unsupported one has the same response in each
framework.
"""


class ServerResponse(Protocol):
    """A response of the gateway, the dashboard or ``CommHandler``.

    ``headers`` is a mapping, or a list of pairs in which a name may be repeated. ``stream`` yields the chunks of a
    body.
    """

    @property
    def status_code(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str] | list[tuple[str, str]]: ...

    @property
    def body(self) -> bytes: ...

    @property
    def stream(self) -> Callable[[], AsyncGenerator[bytes, None]] | None: ...


def lower_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers of a request by their names in lower case.

    Values of a repeated name are joined.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        lower = name.lower()
        separator = "; " if lower == "cookie" else ", "
        found[lower] = f"{found[lower]}{separator}{value}" if lower in found else value
    return found


def _parse_query(query: str) -> Mapping[str, str]:
    return dict(parse_qsl(query, keep_blank_values=True))


_FREQUENT_LENGTH = 256
_parse_frequent = lru_cache(256)(_parse_query)


def read_query(query: str) -> Mapping[str, str]:
    """The parameters of a query string. Short ones are cached, because a function's calls have the same."""
    return _parse_frequent(query) if len(query) <= _FREQUENT_LENGTH else _parse_query(query)


def header_pairs(response: ServerResponse) -> Iterable[tuple[str, str]]:
    headers: Any = response.headers
    return headers.items() if isinstance(headers, Mapping) else headers


_CHUNK_BYTES = 64 * 1024
UNREADABLE = (BodyInvalidError, BodyLengthMissingError, BodyTooLargeError)
"""Errors of the functions below. Adapters answer them with ``CommHandler.refuse``."""


def check_size(size: int) -> None:
    """Raises ``BodyTooLargeError``."""
    if size > MAX_REQUEST_BYTES:
        raise BodyTooLargeError(f"the request's body is larger than {MAX_REQUEST_BYTES} bytes")


def check_length(content_length: str | None, check: Callable[[int], None] = check_size) -> None:
    """Refuse a body by its ``content-length`` header, before any of it is read.

    ``check`` refuses a size in bytes. The server handles a header that is not a number. Raises ``BodyTooLargeError``.
    """
    text = (content_length or "").strip()
    if text.isascii() and text.isdigit():
        check(int(text) if len(text) < 20 else sys.maxsize)


def is_chunked(environ: Mapping[str, Any]) -> bool:
    """Whether a WSGI request has a body of unknown length.

    Such a body can be read until ``wsgi.input`` ends. Raises ``BodyLengthMissingError`` if the server does not end
    ``wsgi.input``. PEP 3333 defines no such body, so the frameworks would take it for an empty one. gunicorn and
    Werkzeug end it, and set ``wsgi.input_terminated``.
    """
    if environ.get("CONTENT_LENGTH") or not environ.get("HTTP_TRANSFER_ENCODING"):
        return False
    if not environ.get("wsgi.input_terminated"):
        raise BodyLengthMissingError(
            "the request has no Content-Length, and this WSGI server cannot read bodies without one "
            "(Transfer-Encoding: chunked): let the proxy send Content-Length (nginx: proxy_request_buffering on), or "
            "use a server that decodes chunked bodies, such as gunicorn"
        )
    return True


def read_body(
    read: Callable[[int], bytes],
    content_length: str | None,
    framework_errors: tuple[type[Exception], ...] = (),
    check: Callable[[int], None] = check_size,
) -> bytes:
    """Read a whole body with ``read(size)``, which returns no bytes at the end.

    ``check`` refuses a size in bytes. Its errors and ``framework_errors`` are raised unchanged, because the framework
    answers them. Raises ``BodyTooLargeError``. Raises ``BodyInvalidError`` instead of each server's own error if the
    body ends too early or its chunks are malformed.
    """
    if content_length is not None:
        check_length(content_length, check)
    chunks: list[bytes] = []
    size = 0
    raised: tuple[type[Exception], ...] = (BodyTooLargeError, *framework_errors)
    try:
        while chunk := read(_CHUNK_BYTES):
            size += len(chunk)
            check(size)
            chunks.append(chunk)
    except raised:
        raise
    except Exception as error:
        raise _cannot_read(error) from None
    return b"".join(chunks)


async def read_chunks(
    chunks: AsyncIterator[bytes],
    content_length: str | None,
    disconnect: type[Exception] | tuple[type[Exception], ...] = OSError,
    check: Callable[[int], None] = check_size,
) -> bytes:
    """Read a whole body from its chunks.

    ``disconnect`` has the framework's errors for a disconnected client and malformed chunks. ``check`` refuses a size
    in bytes. Raises the errors of ``read_body``.
    """
    if content_length is not None:
        check_length(content_length, check)
    received: list[bytes] = []
    size = 0
    try:
        async for chunk in chunks:
            size += len(chunk)
            check(size)
            received.append(chunk)
    except disconnect as error:
        raise _cannot_read(error) from None
    return b"".join(received)


def _cannot_read(error: Exception) -> BodyInvalidError:
    return BodyInvalidError(
        f"the request's body cannot be read ({type(error).__name__}): the client closed the connection too early, or "
        "the body does not fit its headers"
    )
