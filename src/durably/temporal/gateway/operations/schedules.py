"""Declared schedules: list, describe, pause, resume, trigger, backfill."""

import asyncio
import datetime as dt
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from temporalio.api.workflowservice.v1 import ListScheduleMatchingTimesRequest
from temporalio.client import (
    ScheduleActionExecutionStartWorkflow,
    ScheduleBackfill,
    ScheduleDescription,
    ScheduleHandle,
    ScheduleOverlapPolicy,
)
from temporalio.service import RPCError, RPCStatusCode

from durably.temporal.client.connection import Temporal
from durably.temporal.declarations import ScheduleDeclaration
from durably.temporal.gateway.exposure import ScheduleExposure
from durably.temporal.gateway.messages import GatewayRequest, GatewayResponse, answer
from durably.temporal.gateway.models import (
    BackfillAccepted,
    ScheduleAccepted,
    ScheduledAction,
    ScheduleLinks,
    ScheduleList,
    ScheduleState,
)
from durably.temporal.gateway.problems import Problem, bad_request, not_found
from durably.temporal.namespace.schedules import default_app, is_synced, schedule_owner, spec_in_words

MAXIMUM_BACKFILL = 500
"""Times of a schedule in one backfill. The server counts at most 1000."""

_DESCRIBED_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class ScheduleCall:
    """An authorized request about schedules. ``value`` is the validated body."""

    temporal: Temporal
    request: GatewayRequest
    exposure: ScheduleExposure
    id: str | None
    value: Any
    rpc_timeout: dt.timedelta

    @property
    def app(self) -> str:
        return self.exposure.app or default_app(self.temporal)

    @property
    def declaration(self) -> ScheduleDeclaration:
        """Raises the problem 404 for a schedule that is not declared or not open.

        Raises ``TemporalSettingsError`` for a schedule that ``expose_schedules`` names and the app does not declare.
        """
        assert self.id is not None, "only endpoints with an id use it"
        self.exposure.check(self.temporal, self.id)
        declared = self.exposure.declared(self.temporal)
        if self.id not in declared:
            raise not_found("there is no such schedule here")
        return declared[self.id]

    async def handle(self, id: str) -> ScheduleHandle:
        return (await self.temporal.client()).get_schedule_handle(id)

    def links(self, id: str) -> ScheduleLinks:
        return ScheduleLinks(self=self.request.location(self.exposure.name, id))


async def list_schedules(call: ScheduleCall) -> GatewayResponse:
    at_once = asyncio.Semaphore(_DESCRIBED_AT_ONCE)

    async def state(declaration: ScheduleDeclaration) -> ScheduleState:
        async with at_once:
            return await _state(call, declaration, await _describe(call, declaration.id))

    declared = call.exposure.declared(call.temporal)
    return answer(ScheduleList(schedules=await asyncio.gather(*map(state, declared.values()))))


async def describe(call: ScheduleCall) -> GatewayResponse:
    declaration = call.declaration
    return answer(await _state(call, declaration, await _describe_own(call, declaration)))


async def _describe(call: ScheduleCall, id: str) -> ScheduleDescription | None:
    """``None`` for a schedule that the server does not have."""
    handle = await call.handle(id)
    try:
        return await handle.describe(rpc_timeout=call.rpc_timeout)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and not error.message.startswith("Namespace "):
            return None
        raise


async def _describe_own(call: ScheduleCall, declaration: ScheduleDeclaration) -> ScheduleDescription:
    """Raises the problem 409 for a missing schedule, or one of another app."""
    described = await _describe(call, declaration.id)
    if described is None:
        raise Problem(
            HTTPStatus.CONFLICT,
            "schedule-not-synced",
            f'the schedule "{declaration.id}" is declared, but the server does not have it: run '
            "`durably temporal sync-schedules`",
        )
    if await schedule_owner(described) != call.app:
        raise Problem(
            HTTPStatus.CONFLICT,
            "schedule-of-another-app",
            f'the server has a schedule "{declaration.id}" that was not synced for the app "{call.app}": rename this '
            "one, or give expose_schedules() the app= that `durably temporal sync-schedules --app` has",
        )
    return described


async def _state(
    call: ScheduleCall, declaration: ScheduleDeclaration, described: ScheduleDescription | None
) -> ScheduleState:
    state = ScheduleState(
        schedule_id=declaration.id,
        spec=spec_in_words(declaration.spec),
        state="not_synced",
        links=call.links(declaration.id),
    )
    if described is None:
        return state
    if await schedule_owner(described) != call.app:
        return state.model_copy(update={"state": "of_another_app"})
    synced = await is_synced(call.temporal, await call.temporal.client(), declaration, described)
    return state.model_copy(update={"state": "synced" if synced else "changed", **_facts(described)})


def _facts(described: ScheduleDescription) -> dict[str, Any]:
    """The schedule's state on the server."""
    info, state = described.info, described.schedule.state
    return {
        "paused": state.paused,
        "note": state.note or None,
        "next_times": list(info.next_action_times),
        "recent_actions": [
            ScheduledAction(
                scheduled_time=each.scheduled_at,
                started_time=each.started_at,
                workflow_id=each.action.workflow_id,
                run_id=each.action.first_execution_run_id,
            )
            for each in reversed(info.recent_actions)
            if isinstance(each.action, ScheduleActionExecutionStartWorkflow)
        ],
        "running_workflow_ids": [
            each.workflow_id for each in info.running_actions if isinstance(each, ScheduleActionExecutionStartWorkflow)
        ],
        "started_count": info.num_actions,
        "skipped_count": info.num_actions_skipped_overlap,
        "missed_count": info.num_actions_missed_catchup_window,
    }


async def pause(call: ScheduleCall) -> GatewayResponse:
    described = await _describe_own(call, call.declaration)
    if described.schedule.state.paused:
        raise Problem(HTTPStatus.CONFLICT, "schedule-paused", "the schedule is already paused")
    handle = await call.handle(described.id)
    await handle.pause(note=call.value.note or "paused over HTTP", rpc_timeout=call.rpc_timeout)
    return _accept(call, described.id)


async def resume(call: ScheduleCall) -> GatewayResponse:
    described = await _describe_own(call, call.declaration)
    if not described.schedule.state.paused:
        raise Problem(HTTPStatus.CONFLICT, "schedule-not-paused", "the schedule is not paused")
    handle = await call.handle(described.id)
    await handle.unpause(note=call.value.note or "resumed over HTTP", rpc_timeout=call.rpc_timeout)
    return _accept(call, described.id)


async def trigger(call: ScheduleCall) -> GatewayResponse:
    described = await _describe_own(call, call.declaration)
    handle = await call.handle(described.id)
    overlap = None if call.value.overlap is None else ScheduleOverlapPolicy[call.value.overlap.upper()]
    await handle.trigger(overlap=overlap, rpc_timeout=call.rpc_timeout)
    return _accept(call, described.id)


async def backfill(call: ScheduleCall) -> GatewayResponse:
    """Raises the problem 400 for a span with no, too many, or future times."""
    described = await _describe_own(call, call.declaration)
    start, end = call.value.start_at, call.value.end_at
    if end > dt.datetime.now(dt.UTC):
        raise bad_request("end_at is in the future: a backfill is for times that have passed")
    times = await _count_times(call, described.id, start, end)
    if times == 0:
        raise bad_request("the schedule has no time between start_at and end_at (start_at itself does not count)")
    if times > MAXIMUM_BACKFILL:
        raise bad_request(
            f"the schedule has more than {MAXIMUM_BACKFILL} times between start_at and end_at: backfill it in parts"
        )
    overlap = ScheduleOverlapPolicy[call.value.overlap.upper()]
    handle = await call.handle(described.id)
    await handle.backfill(ScheduleBackfill(start_at=start, end_at=end, overlap=overlap), rpc_timeout=call.rpc_timeout)
    body = BackfillAccepted(schedule_id=described.id, times=times, links=call.links(described.id))
    return answer(body, HTTPStatus.ACCEPTED)


async def _count_times(call: ScheduleCall, id: str, start: dt.datetime, end: dt.datetime) -> int:
    """The number of times after ``start`` up to ``end``, counted by the server."""
    client = await call.temporal.client()
    request = ListScheduleMatchingTimesRequest(namespace=client.namespace, schedule_id=id)
    request.start_time.FromDatetime(start)
    request.end_time.FromDatetime(end)
    response = await client.workflow_service.list_schedule_matching_times(request, timeout=call.rpc_timeout)
    return len(response.start_time)


def _accept(call: ScheduleCall, id: str) -> GatewayResponse:
    return answer(ScheduleAccepted(schedule_id=id, links=call.links(id)), HTTPStatus.ACCEPTED)
