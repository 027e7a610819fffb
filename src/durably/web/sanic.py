"""Requests and responses of Sanic."""

import math
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from sanic.compat import Header
from sanic.exceptions import BadRequest
from sanic.request import Request, types
from sanic.response import HTTPResponse

from . import ServerResponse, check_size, header_pairs, lower_headers, read_chunks


async def read_body(request: Request, check: Callable[[int], None] = check_size) -> bytes:
    """The body of a request to a streaming route, which the app's own code can read again.

    ``REQUEST_MAX_SIZE`` does not apply. ``check`` refuses a size in bytes. Raises the errors of
    ``durably.web.read_chunks``.
    """
    chunks: Any = request.stream
    request.body = await read_chunks(aiter(chunks), request.headers.get("content-length"), (OSError, BadRequest), check)
    return request.body


@contextmanager
def without_timeout(request: Request) -> Iterator[None]:
    """Let the response take longer than ``RESPONSE_TIMEOUT``. It must be written before the end of the block."""
    protocol: Any = request.protocol
    before = getattr(protocol, "response_timeout", None)  # absent under ASGI
    protocol.response_timeout = math.inf
    try:
        yield
    finally:
        protocol.response_timeout = before


async def respond(request: Request, response: ServerResponse) -> None:
    """Write a response. Sanic cancels the handler of a disconnected client, which ends its stream."""
    made = HTTPResponse(response.body, response.status_code, Header(header_pairs(response)))
    answer: Any = await request.respond(made)
    if response.stream is not None:
        async with aclosing(response.stream()) as chunks:
            async for chunk in chunks:
                await answer.send(chunk)
    await answer.eof()


def parts_of(request: Request) -> dict[str, Any]:
    """Arguments of a request to the dashboard, or for a stream."""
    return {
        "method": request.method,
        "query": request.query_string,
        "headers": lower_headers(request.headers.items()),
        "raw_request": request,
    }


def hide_query(request: Request, hide: Callable[[str], str]) -> None:
    """Change the query of the request in the access log. There is no public way."""
    parse: Any = types
    request._parsed_url = parse.parse_url(f"{request.path}?{hide(request.query_string)}".encode())
