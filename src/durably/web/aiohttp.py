"""Requests and responses of aiohttp."""

from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

from aiohttp import web

from . import ServerResponse, check_size, header_pairs, lower_headers, read_chunks


async def read_body(request: web.Request, check: Callable[[int], None] = check_size) -> bytes:
    """The body, which the app's own code can read again.

    The application's ``client_max_size`` does not apply. ``check`` refuses a size in bytes. Raises the errors of
    ``durably.web.read_chunks``.
    """
    length, broken = request.headers.get("content-length"), (OSError, web.RequestPayloadError)
    body = await read_chunks(request.content.iter_any(), length, broken, check)
    request._read_bytes = body  # as ``request.read`` does
    return body


async def respond(request: web.Request, response: ServerResponse) -> web.StreamResponse:
    """Write a response. A disconnected client ends its stream."""
    headers: Any = list(header_pairs(response))
    if response.stream is None:
        return web.Response(body=response.body, status=response.status_code, headers=headers)
    answer = web.StreamResponse(status=response.status_code, headers=headers)
    with suppress(ConnectionError):
        await answer.prepare(request)
        async with aclosing(response.stream()) as chunks:
            async for chunk in chunks:
                await answer.write(chunk)
        await answer.write_eof()
    return answer


def parts_of(request: web.Request) -> dict[str, Any]:
    """Arguments of a request to the dashboard, or for a stream."""
    return {
        "method": request.method,
        "query": request.rel_url.raw_query_string,
        "headers": lower_headers(request.headers.items()),
        "raw_request": request,
    }


def hide_query(request: web.Request, hide: Callable[[str], str]) -> None:
    """Change the query of the request in the access log. There is no public way."""
    url = request.rel_url
    request._cache["path_qs"] = f"{url.raw_path}?{hide(url.raw_query_string)}"
