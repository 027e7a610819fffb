"""Runs: their state, steps, calls and inputs; cancelling, rerunning, invoking."""

from typing import Any

import msgspec
from aiohttp import web

from durably.engine.scheduling.reruns import FromStep
from durably.engine.views import CallView, RunStatus, RunView
from durably.protocol.api import InvokeBody, JobBody, RunBody

from .bodies import decode_json, id_suffix_parameter, limit_parameter, moment_parameter, read_body, read_json
from .responses import ApiError, data_response, json_response, raw_response
from .state import engine_of

DEFAULT_RUNS = 50
MAX_LISTED = 500


async def list_runs(request: web.Request) -> web.Response:
    """``GET /v1/runs``, newest first; ``cursor`` is the last run id of the previous page, ``id_suffix`` the end of
    ids."""
    runs = await engine_of(request).list_runs(
        status=_status_parameter(request),
        function_id=request.query.get("function_id") or None,
        limit=limit_parameter(request, default=DEFAULT_RUNS, most=MAX_LISTED),
        cursor=request.query.get("cursor") or None,
        started_after=moment_parameter(request, "started_after"),
        id_suffix=id_suffix_parameter(request),
    )
    return data_response([run_body(run) for run in runs])


async def get_run(request: web.Request) -> web.Response:
    """``GET /v1/runs/{run_id}``."""
    return data_response(run_body(await _find_run(request)))


async def list_run_steps(request: web.Request) -> web.Response:
    """``GET /v1/runs/{run_id}/steps``, in the form of ``durably.protocol.api.StepBody``."""
    run = await _find_run(request)
    return data_response(await engine_of(request).run_steps(run.id))


async def list_run_attempts(request: web.Request) -> web.Response:
    """``GET /v1/runs/{run_id}/attempts``: failed attempts that were repeated (``AttemptBody``)."""
    run = await _find_run(request)
    return data_response(await engine_of(request).run_attempts(run.id))


async def list_run_jobs(request: web.Request) -> web.Response:
    """``GET /v1/runs/{run_id}/jobs``: the calls that are due or under way, the earliest first."""
    run = await _find_run(request)
    calls = sorted(await engine_of(request).run_calls(run.id), key=lambda call: call.due_at)
    return data_response([_job_body(call, position) for position, call in enumerate(calls)])


async def cancel_run(request: web.Request) -> web.Response:
    """``DELETE /v1/runs/{run_id}``; a run that has ended already stays as it is, which is no error."""
    run_id = request.match_info["run_id"]
    await engine_of(request).cancel_run(run_id)
    return data_response(run_body(await _find_run(request)))


class RerunRequest(msgspec.Struct):
    from_step: FromStep | None = None


_rerun_decoder = msgspec.json.Decoder(RerunRequest)


async def rerun(request: web.Request) -> web.Response:
    """``POST /v1/runs/{run_id}/rerun``: the same function and events again, as a new run; from a step with the body
    ``{"from_step": {"step_id": …, "input": […]?}}``."""
    engine, body = engine_of(request), await read_body(request)
    from_step = decode_json(body, _rerun_decoder.decode).from_step if body.strip() else None
    new_run = await engine.get_run(await engine.rerun(request.match_info["run_id"], from_step=from_step))
    assert new_run is not None, "a run that was just started exists"
    return data_response(run_body(new_run))


async def get_run_batch(request: web.Request) -> web.Response:
    """``GET /v0/runs/{run_id}/batch``."""
    run_id = request.match_info["run_id"]
    return _raw_or_unknown(await engine_of(request).run_batch(run_id), run_id)


async def get_run_actions(request: web.Request) -> web.Response:
    """``GET /v0/runs/{run_id}/actions``."""
    run_id = request.match_info["run_id"]
    return _raw_or_unknown(await engine_of(request).run_actions(run_id), run_id)


def run_body(run: RunView) -> RunBody:
    return RunBody(
        run_id=run.id,
        function_id=run.function_id,
        app_id=run.app_id,
        status=run.status,
        run_started_at=run.created_at,
        ended_at=run.ended_at,
        output=run.output,
        attempt=run.attempt,
        event_id=run.event_ids[0] if run.event_ids else None,
        event_ids=run.event_ids,
        original_run_id=run.rerun_of,
    )


def _job_body(call: CallView, position: int) -> JobBody:
    return JobBody(
        id=call.job_id,
        at=call.due_at,
        position=position,
        kind="edge",
        attempt=call.attempt,
        step_id=call.step_id,
        step_name=call.step_name,
        in_flight=call.in_flight,
        error=call.error,
    )


async def _find_run(request: web.Request) -> RunView:
    run_id = request.match_info["run_id"]
    if (run := await engine_of(request).get_run(run_id)) is None:
        raise _unknown_run(run_id)
    return run


def _raw_or_unknown(body: bytes | None, run_id: str) -> web.Response:
    if body is None:
        raise _unknown_run(run_id)
    return raw_response(body)


def _unknown_run(run_id: str) -> ApiError:
    return ApiError(404, f"no run has the id {run_id!r}")


def _status_parameter(request: web.Request) -> RunStatus | None:
    text = request.query.get("status")
    return read_status(text) if text else None


def read_status(text: str) -> RunStatus:
    """Raises ``ApiError``."""
    try:
        return RunStatus(text.capitalize())
    except ValueError:
        raise ApiError(400, f"status must be one of {', '.join(RunStatus)}, not {text!r}") from None


class InvokeRequest(msgspec.Struct):
    """The event that the function gets, less its name."""

    data: dict[str, Any] | None = None
    user: Any = None
    v: str | None = None


_decoder = msgspec.json.Decoder(InvokeRequest)


async def invoke_function(request: web.Request) -> web.Response:
    """``POST /invoke/{function_id}``. Answers once the run is stored, not when it ends."""
    body = await read_json(request, _decoder)
    receipt = await engine_of(request).invoke(
        request.match_info["function_id"], data=body.data or {}, user=body.user, v=body.v
    )
    return json_response(InvokeBody(id=receipt.event_id, run_id=receipt.run_id))
