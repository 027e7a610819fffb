"""Requests and responses of WSGI, for its frameworks and for apps without one."""

import io
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any

from durably.io.background_loop import iterate_sync

from . import ServerResponse, check_length, check_size, header_pairs, is_chunked
from . import read_body as read_chunks

Environ = MutableMapping[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Any, Any], Iterable[bytes]]
"""Frameworks have types of their own for the arguments, which are those above."""


def headers_of(environ: Mapping[str, Any]) -> dict[str, str]:
    """The headers by lower-case names."""
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name[:5] == "HTTP_"}
    if content_type := environ.get("CONTENT_TYPE"):
        headers["content-type"] = content_type
    if content_length := environ.get("CONTENT_LENGTH"):
        headers["content-length"] = content_length
    return headers


def read_body(environ: Environ, check: Callable[[int], None] = check_size) -> bytes:
    """The body, which the app's own code can read again.

    ``check`` refuses a size in bytes. Raises the errors of ``durably.web.read_body``.
    """
    length, source = environ.get("CONTENT_LENGTH"), environ["wsgi.input"]
    if is_chunked(environ):
        body = read_chunks(source.read, None, check=check)
    else:
        check_length(length, check)
        left = int(length) if length and length.isdecimal() else 0

        def read(size: int) -> bytes:
            nonlocal left
            chunk: bytes = source.read(min(size, left)) if left else b""
            if left and not chunk:
                raise ConnectionResetError
            left -= len(chunk)
            return chunk

        body = read_chunks(read, None, check=check)
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def path_of(environ: Environ) -> str:
    """The decoded path within the app."""
    return decode(environ.get("PATH_INFO", ""))


def decode(text: str) -> str:
    """WSGI passes bytes of a path as characters."""
    return text.encode("latin-1").decode(errors="replace")


def send_response(
    response: ServerResponse,
    environ: Environ,
    start_response: StartResponse,
    stream: Iterable[bytes] | None = None,
) -> Iterable[bytes]:
    """Send a response. A disconnected client ends its stream.

    ``stream`` has the chunks of a stream. By default they are made on the background loop.
    """
    headers = list(header_pairs(response))
    if response.stream is None:
        headers.append(("content-length", str(len(response.body))))
    start_response(f"{int(response.status_code)} {HTTPStatus(response.status_code).phrase}", headers)
    if environ["REQUEST_METHOD"] == "HEAD":
        return [b""]
    if response.stream is None:
        return [response.body]
    return iterate_sync(response.stream()) if stream is None else stream
