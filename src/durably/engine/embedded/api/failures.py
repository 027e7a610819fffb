"""Turning what goes wrong in a handler into an error body with the right status."""

import logging
from weakref import WeakKeyDictionary

from aiohttp import web
from aiohttp.typedefs import Handler

from durably.engine import errors
from durably.engine.embedded.sparse_log import SparseLog
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
