"""Errors as responses, also to requests that cannot be read."""

import logging
from weakref import WeakKeyDictionary

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from durably.engine.core import errors
from durably.engine.sparse_log import SparseLog
from durably.protocol.text import get_logger

from .responses import ApiError, error_response
from .state import engine_of

HEALTH_PATH = "/health"
_logger = get_logger("durably.engine.api")

_STATUSES: dict[type[errors.EngineError], int] = {
    errors.CheckpointInvalidError: 400,
    errors.ConfigInvalidError: 400,
    errors.EventInvalidError: 400,
    errors.OpInvalidError: 400,
    errors.SelectionInvalidError: 400,
    errors.StepNotFoundError: 400,
    errors.CancellationNotFoundError: 404,
    errors.FunctionNotFoundError: 404,
    errors.RunNotFoundError: 404,
    errors.FunctionPausedError: 409,
    errors.StaleCallError: 409,
    errors.TooLargeError: 413,
    errors.DatabaseLostError: 503,
    errors.DatabaseReplacedError: 503,
    errors.DatabaseUnavailableError: 503,
    errors.EngineClosedError: 503,
}


_logs: WeakKeyDictionary[web.Application, SparseLog] = WeakKeyDictionary()


@web.middleware
async def failures_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return error_response(error.status, error.message, code=error.code, data=error.data)
    except errors.EngineError as error:
        if isinstance(error, errors.DatabaseUnavailableError):
            _tell_of_trouble(request.app, error)
        status = _STATUSES.get(type(error), 500)
        return error_response(status, error.message, data=dict(request.match_info) if status in (409, 413) else None)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return error_response(405, f"the method must be {allowed}, not {request.method}")
    except web.HTTPNotFound:
        return error_response(404, f"there is nothing at {request.path}")
    except Exception:
        # The route, not the path: the path of an event holds the event key.
        resource = request.match_info.route.resource
        _logger.exception("%s %s failed", request.method, resource.canonical if resource else "(unknown)")
        return error_response(500, "the engine failed to handle the request; its log says why")


@web.middleware
async def refuse_once_stopped(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An engine that has stopped by itself answers with the reason on every route but ``/health``. The process is
    alive, and if a supervisor restarted it, it would start with an empty database in place of a deleted one."""
    stopped = engine_of(request).stop_error
    if stopped and request.path != HEALTH_PATH:
        return error_response(503, f"the engine has stopped: {stopped.message}")
    return await handler(request)


def _tell_of_trouble(app: web.Application, error: errors.DatabaseUnavailableError) -> None:
    """Senders know, whoever runs the engine must too. One line now and then: a log may be on the disk that is full."""
    log = _logs.setdefault(app, SparseLog(_logger))
    log.log(logging.ERROR, "requests are refused with 503, so that they are sent again: %s", error.message)


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
