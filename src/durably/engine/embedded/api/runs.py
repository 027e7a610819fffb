"""Runs: their state, steps, outstanding calls and inputs; cancelling and running again."""

from aiohttp import web

from durably.engine.embedded.views import RunView
from durably.protocol.api import RunBody

from .parameters import limit_parameter
from .responses import ApiError, data_response, raw_response
from .state import engine_of

DEFAULT_RUNS = 50
MAX_LISTED = 500


async def list_runs(request: web.Request) -> web.Response:
    """``GET /v1/runs``, newest first; ``cursor`` is the run id after which to go on."""
    runs = await engine_of(request).list_runs(
        status=_status_parameter(request),
        function_id=request.query.get("function_id") or None,
        limit=limit_parameter(request, default=DEFAULT_RUNS, most=MAX_LISTED),
        cursor=request.query.get("cursor") or None,
    )
    return data_response([run_body(run) for run in runs])


async def get_run(request: web.Request) -> web.Response:
    """``GET /v1/runs/{run_id}``."""
    return data_response(run_body(await _find_run(request)))


async def cancel_run(request: web.Request) -> web.Response:
    """``DELETE /v1/runs/{run_id}``; a run that has ended already stays as it is, which is no error."""
    run = await _find_run(request)
    await engine_of(request).cancel_run(run.id)
    return data_response(run_body(await _find_run(request)))
