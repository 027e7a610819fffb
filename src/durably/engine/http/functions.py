"""Functions: pausing, resuming, bulk cancellations and replays."""

import datetime as dt

import msgspec
from aiohttp import web
from msgspec.structs import replace

from durably.engine.core.errors import FunctionNotFoundError
from durably.engine.scheduling.bulk_operations import Selection
from durably.engine.views import BulkOperationView, FunctionView, RunStatus
from durably.protocol.api import CancellationBody, FunctionBody, ReplayBody
from durably.protocol.durations import parse_rfc3339
from durably.protocol.sync import FunctionConfig
from durably.protocol.text import redact_url

from .bodies import read_json
from .responses import ApiError, data_response
from .runs import read_status
from .state import engine_of


async def list_functions(request: web.Request) -> web.Response:
    """``GET /v1/functions``."""
    return data_response([_body(function) for function in await engine_of(request).list_all_functions()])


async def pause_function(request: web.Request) -> web.Response:
    """``POST /v1/functions/{function_id}/pause``; one that is paused already stays so, which is no error."""
    await engine_of(request).pause_function(request.match_info["function_id"])
    return await _answer(request)


async def resume_function(request: web.Request) -> web.Response:
    """``POST /v1/functions/{function_id}/resume``."""
    await engine_of(request).resume_function(request.match_info["function_id"])
    return await _answer(request)


def without_credentials(config: FunctionConfig) -> FunctionConfig:
    """A function's configuration for display, with redacted URLs: they may contain an app's password."""
    steps = {
        name: replace(step, runtime=replace(step.runtime, url=redact_url(step.runtime.url)))
        for name, step in config.steps.items()
    }
    return replace(config, steps=steps)


async def _answer(request: web.Request) -> web.Response:
    function_id = request.match_info["function_id"]
    for function in await engine_of(request).list_all_functions():
        if function.id == function_id:
            return data_response(_body(function))
    raise FunctionNotFoundError(f"the function {function_id!r} was removed meanwhile")


def _body(function: FunctionView) -> FunctionBody:
    return FunctionBody(
        id=function.id,
        name=function.config.name or function.id,
        config=without_credentials(function.config),
        app_id=function.app_id,
        is_paused=function.is_paused,
    )


class SweepRequest(msgspec.Struct):
    """``function_id`` is the function's full id or, where there is an ``app_id``, also that within the app.

    Times are RFC 3339. ``statuses`` are those of the runs to replay.
    """

    function_id: str
    app_id: str | None = None
    started_after: str | None = None
    started_before: str | None = None
    expression: str | None = msgspec.field(default=None, name="if")
    statuses: list[str] | None = None


_decoder = msgspec.json.Decoder(SweepRequest)


async def cancel_runs(request: web.Request) -> web.Response:
    """``POST /v1/cancellations``: cancels a function's runs created in a range of time, which may end in the future."""
    asked = await read_json(request, _decoder)
    if not asked.started_before:
        raise ApiError(400, "started_before is required")
    return data_response(_cancellation(await engine_of(request).cancel_runs(await _selection(request, asked))))


async def list_cancellations(request: web.Request) -> web.Response:
    """``GET /v1/cancellations``, newest first."""
    return data_response([_cancellation(operation) for operation in await engine_of(request).list_cancellations()])


async def get_cancellation(request: web.Request) -> web.Response:
    """``GET /v1/cancellations/{cancellation_id}``."""
    cancellation_id = request.match_info["cancellation_id"]
    return data_response(_cancellation(_find(await engine_of(request).list_cancellations(), cancellation_id)))


async def delete_cancellation(request: web.Request) -> web.Response:
    """``DELETE /v1/cancellations/{cancellation_id}``: it cancels no more runs."""
    await engine_of(request).delete_cancellation(request.match_info["cancellation_id"])
    return data_response({"ok": True})


async def replay_runs(request: web.Request) -> web.Response:
    """``POST /v1/replays``: runs a function's runs again that were created in a range of time, by default until now,
    and ended with one of the statuses, by default failed."""
    asked = await read_json(request, _decoder)
    statuses = [read_status(text) for text in asked.statuses or [RunStatus.FAILED]]
    return data_response(_replay(await engine_of(request).replay_runs(await _selection(request, asked), statuses)))


async def list_replays(request: web.Request) -> web.Response:
    """``GET /v1/replays``, newest first."""
    return data_response([_replay(operation) for operation in await engine_of(request).list_replays()])


async def get_replay(request: web.Request) -> web.Response:
    """``GET /v1/replays/{replay_id}``."""
    return data_response(_replay(_find(await engine_of(request).list_replays(), request.match_info["replay_id"])))


def _find(operations: list[BulkOperationView], operation_id: str) -> BulkOperationView:
    for operation in operations:
        if operation.id == operation_id:
            return operation
    raise ApiError(404, f"there is none with the id {operation_id!r}")


async def _selection(request: web.Request, asked: SweepRequest) -> Selection:
    known = {function.id for function in await engine_of(request).list_all_functions()}
    function_id = asked.function_id
    if asked.app_id and function_id not in known:
        function_id = f"{asked.app_id}-{function_id}"
    return Selection(
        function_id=function_id,
        started_after=_moment("started_after", asked.started_after),
        started_before=_moment("started_before", asked.started_before) or dt.datetime.now(dt.UTC),
        expression=asked.expression or None,
    )


def _moment(name: str, text: str | None) -> dt.datetime | None:
    if not text:
        return None
    if moment := parse_rfc3339(text):
        return moment
    raise ApiError(400, f"{name} must be an RFC 3339 moment like 2026-01-31T12:00:00Z, not {text!r}")


def _cancellation(operation: BulkOperationView) -> CancellationBody:
    return CancellationBody(
        id=operation.id,
        function_id=operation.function_id,
        started_after=operation.started_after,
        started_before=operation.started_before,
        expression=operation.expression,
        created_at=operation.created_at,
        ended_at=operation.ended_at,
        cancelled=operation.affected,
    )


def _replay(operation: BulkOperationView) -> ReplayBody:
    return ReplayBody(
        id=operation.id,
        function_id=operation.function_id,
        started_after=operation.started_after,
        started_before=operation.started_before,
        expression=operation.expression,
        statuses=[status.value for status in operation.statuses],
        created_at=operation.created_at,
        ended_at=operation.ended_at,
        replayed=operation.affected,
    )
