"""Requests that cannot be read: what is no HTTP, bodies that are not as declared, and expectations that nobody meets.

aiohttp logs the former two with tracebacks, which quote them, and a request line may hold an event key.
"""

import logging

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from durably.protocol.text import get_logger

from .responses import error_response

SERVER_LOGGER = get_logger("durably.engine.http")
"""For aiohttp's server: says that a request could not be read, not what it was."""


class _Discreet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.exc_info = record.exc_text = None
            record.msg, record.args = "a request was no HTTP, and was refused: %s", (type(error).__name__,)
        elif isinstance(error, web.RequestPayloadError):  # It has been answered: this is aiohttp, reading the rest.
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.msg, record.args = "a request's body was not what its headers say, and was refused", ()
        return True


SERVER_LOGGER.addFilter(_Discreet())


async def answer_expectation(request: web.Request) -> web.StreamResponse | None:
    """For a route's ``Expect`` header (RFC 9110 §10.1.1): the answer, or ``None`` to go on."""
    if request.version < HttpVersion11:
        return None
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        return error_response(417, "the only expectation that is met is 100-continue")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # The answer itself has not begun.
    return None


async def answer_unrouted(request: web.Request) -> web.StreamResponse:
    """For what no other route takes. A route, since what aiohttp itself does with such a request's expectations breaks
    on those that are not ASCII. Raises ``HTTPMethodNotAllowed`` or ``HTTPNotFound``."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        _, methods = await resource.resolve(request)
        allowed |= methods
    allowed.discard(hdrs.METH_ANY)
    raise web.HTTPMethodNotAllowed(request.method, allowed) if allowed else web.HTTPNotFound
