"""Declared schedules over HTTP: list, describe, pause, resume, trigger and backfill, on a real server."""

import asyncio
import datetime as dt
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import ScheduleCalendarSpec, ScheduleIntervalSpec, ScheduleRange, ScheduleSpec

from durably.temporal import Temporal, TemporalSettingsError
from durably.temporal.gateway import (
    FOR_OPERATORS,
    FOR_SCHEDULE_OPERATORS,
    FOR_SCHEDULE_READERS,
    Action,
    Gateway,
    Operation,
    expose,
    expose_schedules,
)
from durably.temporal.gateway.openapi import openapi
from durably.temporal.namespace.schedules import spec_in_words, sync_schedules

from ....waiting import eventually
from ...app_server import AppServer
from ...apps import SCHEDULE, UNSYNCED_SCHEDULE
from ...dev_server import DevServer
from ...serve import SERVERS
from ...workflows import TASK_QUEUE, Pair, SumWorkflow
from ..gateway_client import ask

pytestmark = pytest.mark.usefixtures("worker")

CHANGES = ("pause", "resume", "trigger", "backfill")


def sync(temporal: Temporal, **options: Any) -> None:
    async def run() -> None:
        async for _ in sync_schedules(temporal, **options):
            pass

    asyncio.run(run())


@pytest.fixture(scope="module")
def synced(server: DevServer) -> None:
    temporal = Temporal(server.address, task_queue=TASK_QUEUE)
    temporal.add_schedule(SCHEDULE, SumWorkflow.run, Pair(left=1), every=timedelta(hours=1))
    sync(temporal)


def wait_for(app: AppServer, path: str, is_there: Callable[[Any], bool]) -> Any:
    return eventually(lambda: app.get(path).json, f"{path} has the state", is_right=is_there)


def test_schedules_are_shown_and_changed(app: AppServer, synced: None) -> None:
    listed = app.get("/open/schedules").json["schedules"]
    assert [(each["schedule_id"], each["state"]) for each in listed] == [
        (SCHEDULE, "synced"),
        (UNSYNCED_SCHEDULE, "not_synced"),
    ]
    place = listed[0]["links"]["self"]
    assert place == f"/open/schedules/{SCHEDULE}"
    before = app.get(place).json
    assert (before["spec"], before["paused"], len(before["next_times"])) == ("every 1 h", False, 10)

    for change in ("trigger", "backfill"):
        refused = app.post(f"{place}/{change}", headers={"Idempotency-Key": "1"})
        assert (refused.status, refused.json["detail"][:34]) == (400, "Idempotency-Key does not work here")
    assert app.post(f"{place}/resume").json["type"] == "urn:durably:problem:schedule-not-paused"
    assert app.post(f"{place}/pause", {"note": "holidays"}).status == 202
    assert app.post(f"{place}/pause").json["type"] == "urn:durably:problem:schedule-paused"
    paused = app.get(place).json
    assert (paused["paused"], paused["note"]) == (True, "holidays")

    assert app.post(f"{place}/trigger", {"overlap": "allow_all"}).status == 202
    count = before["started_count"] + 1
    triggered = wait_for(app, place, lambda state: state["started_count"] >= count)
    started = triggered["recent_actions"][0]["workflow_id"]
    assert started.startswith(f"{SCHEDULE}-")
    assert app.get(f"/open/sum-of-pair/{started}/result", wait=30).json["result"] == 1

    day = f"2026-01-{1 + [*SERVERS].index(app.name):02}"
    span = {"start_at": f"{day}T00:30:00Z", "end_at": f"{day}T04:30:00+01:00"}
    backfilled = app.post(f"{place}/backfill", span)
    assert (backfilled.status, backfilled.json["times"]) == (202, 3)
    state = wait_for(app, place, lambda state: state["started_count"] >= count + 3)
    workflow_ids = {each["workflow_id"] for each in state["recent_actions"]}
    assert workflow_ids >= {f"{SCHEDULE}-{day}T0{hour}:00:00Z" for hour in (1, 2, 3)}

    assert app.post(f"{place}/resume").status == 202
    assert app.get(place).json["paused"] is False


def test_other_schedules_and_methods_are_refused(app: AppServer, synced: None) -> None:
    assert app.get("/open/schedules/unknown").status == 404
    assert app.post("/open/schedules/unknown/trigger").status == 404
    for answer in (app.get(f"/open/schedules/{UNSYNCED_SCHEDULE}"), *refused_changes(app, UNSYNCED_SCHEDULE)):
        assert (answer.status, answer.json["type"]) == (409, "urn:durably:problem:schedule-not-synced")
        assert "durably temporal sync-schedules" in answer.json["detail"]
    assert app.ask("DELETE", f"/open/schedules/{SCHEDULE}").status == 405
    assert app.post("/open/schedules", {}).status == 405
    assert app.get(f"/guarded/schedules/{SCHEDULE}").status == 401
    assert app.get(f"/guarded/schedules/{SCHEDULE}", {"x-user": "reader"}).status == 403
    assert app.get(f"/guarded/schedules/{SCHEDULE}", {"x-user": "owner"}).status == 200


def refused_changes(app: AppServer, id: str) -> list[Any]:
    span = {"start_at": "2026-01-01T00:00:00Z", "end_at": "2026-01-02T00:00:00Z"}
    return [app.post(f"/open/schedules/{id}/{each}", span if each == "backfill" else {}) for each in CHANGES]


@pytest.fixture
def own(server: DevServer) -> Temporal:
    """A connection with its own schedules: their ids are unique."""
    app = f"app-{uuid.uuid4().hex[:8]}"
    temporal = Temporal(server.address, task_queue=app)
    temporal.add_schedule(f"{app}-report", "sum-of-pair", cron="* * * * *", time_zone="Europe/Berlin")
    return temporal


def gateway(temporal: Temporal, *ids: str, authorize: Callable[[Action], bool] = lambda action: True) -> Gateway:
    schedules = expose_schedules(*ids, operations=FOR_SCHEDULE_OPERATORS)
    return Gateway(temporal, [], authorize=authorize, schedules=schedules)


def pause_on_server(temporal: Temporal, id: str) -> None:
    temporal.sync.run(lambda client: client.get_schedule_handle(id).pause())


async def test_number_of_backfilled_runs_is_bounded(own: Temporal) -> None:
    id = own.schedules[0].id
    await asyncio.to_thread(sync, own)
    await asyncio.to_thread(pause_on_server, own, id)

    async def backfill(start: str, end: str, **more: Any) -> Any:
        body = {"start_at": start, "end_at": end, **more}
        return await ask(gateway(own), None, "POST", f"schedules/{id}/backfill", body)

    future = (dt.datetime.now(dt.UTC) + timedelta(days=1)).isoformat()
    now = dt.datetime.now(dt.UTC).isoformat()
    for start, end, words in [
        ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "end_at must be after start_at"),
        ("2024-01-01T00:00:00Z", "2025-06-01T00:00:00Z", "at most 366 days"),
        ("2026-01-01T00:00:00", "2026-01-01T00:10:00Z", "timezone"),
        ("0001-01-01T00:00:00+14:00", "0001-01-02T00:00:00Z", "before 1970"),
        ("2026-01-01T00:00:10Z", "2026-01-01T00:00:50Z", "has no time between"),
        ("2026-01-01T00:00:00Z", "2026-01-01T08:21:00Z", "more than 500 times"),
        ("2025-12-01T00:00:00Z", "2026-01-01T00:00:00Z", "more than 500 times"),
        (now, future, "future"),
    ]:
        answer = await backfill(start, end)
        assert answer.status == 400, (start, end)
        assert words in str(answer.json)
    assert (await backfill("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", overlap="often")).status == 400
    most = await backfill("2026-01-01T00:00:00Z", "2026-01-01T08:20:00Z", overlap="skip")
    assert (most.status, most.json["times"]) == (202, 500)


async def test_changed_declarations_and_schedules_of_other_apps_are_reported(own: Temporal, server: DevServer) -> None:
    id = own.schedules[0].id
    await asyncio.to_thread(sync, own)
    changed = Temporal(server.address, task_queue=own.settings.task_queue)
    changed.add_schedule(id, "sum-of-pair", cron="0 0 * * *")
    described = await ask(gateway(changed), None, "GET", f"schedules/{id}")
    assert (described.json["state"], described.json["spec"]) == ("changed", "cron 0 0 * * *")

    other = Temporal(server.address, task_queue="another-queue")
    other.add_schedule(id, "sum-of-pair", cron="0 0 * * *")
    refused = await ask(gateway(other), None, "POST", f"schedules/{id}/trigger")
    assert (refused.status, refused.json["type"]) == (409, "urn:durably:problem:schedule-of-another-app")
    [listed] = (await ask(gateway(other), None, "GET", "schedules")).json["schedules"]
    assert listed["state"] == "of_another_app"
    assert "next_times" not in listed
    same_app = expose_schedules(app=own.settings.task_queue)
    allowed = Gateway(other, [], allow_anonymous=True, schedules=same_app)
    assert (await ask(allowed, None, "GET", f"schedules/{id}")).json["state"] == "changed"


async def test_each_operation_is_authorized(own: Temporal) -> None:
    id = own.schedules[0].id
    actions: list[Action] = []

    def refuse(action: Action) -> bool:
        actions.append(action)
        return False

    refusing = gateway(own, authorize=refuse)
    assert (await ask(refusing, "ann", "GET", "schedules")).status == 403
    assert (await ask(refusing, "ann", "GET", f"schedules/{id}")).status == 403
    for change in CHANGES:
        span = {"start_at": "2026-01-01T00:00:00Z", "end_at": "2026-01-01T00:02:00Z"}
        body = span if change == "backfill" else {}
        assert (await ask(refusing, "ann", "POST", f"schedules/{id}/{change}", body)).status == 403
    # The response does not reveal whether an id is declared.
    assert (await ask(refusing, "ann", "GET", "schedules/unknown")).status == 403
    reported = [(action.operation, action.name, action.principal) for action in actions]
    assert reported == [
        (Operation.LIST_SCHEDULES, None, "ann"),
        (Operation.DESCRIBE_SCHEDULE, id, "ann"),
        (Operation.PAUSE_SCHEDULE, id, "ann"),
        (Operation.RESUME_SCHEDULE, id, "ann"),
        (Operation.TRIGGER_SCHEDULE, id, "ann"),
        (Operation.BACKFILL_SCHEDULE, id, "ann"),
        (Operation.DESCRIBE_SCHEDULE, "unknown", "ann"),
    ]
    assert {(action.workflow, action.workflow_id, action.owner) for action in actions} == {("schedules", None, None)}


async def test_schedules_are_closed_by_default(own: Temporal) -> None:
    id = own.schedules[0].id
    closed = Gateway(own, [expose(SumWorkflow, operations=FOR_OPERATORS)], allow_anonymous=True)
    assert (await ask(closed, None, "GET", "schedules")).status == 404
    reading = Gateway(own, [], allow_anonymous=True, schedules=expose_schedules())
    assert (await ask(reading, None, "GET", "schedules")).status == 200
    for change in CHANGES:
        assert (await ask(reading, None, "POST", f"schedules/{id}/{change}", {})).status == 404
    own.add_schedule(f"{id}-2", "sum-of-pair", every=timedelta(days=1))
    one = gateway(own, id)
    assert len((await ask(one, None, "GET", "schedules")).json["schedules"]) == 1
    assert (await ask(one, None, "GET", f"schedules/{id}-2")).status == 404


async def test_a_schedule_with_a_fault_does_not_affect_others(own: Temporal, caplog: pytest.LogCaptureFixture) -> None:
    """An example is a misspelt id."""
    id, missing = own.schedules[0].id, f"missing-{uuid.uuid4().hex}"
    misspelt = gateway(own, id, missing)
    listed = await ask(misspelt, None, "GET", "schedules")
    assert (listed.status, [each["schedule_id"] for each in listed.json["schedules"]]) == (200, [id])
    assert f'names the schedule "{missing}", which this process does not declare' in caplog.text
    assert (await ask(misspelt, None, "GET", f"schedules/{id}")).status == 409
    assert (await ask(misspelt, None, "GET", f"schedules/{missing}")).status == 500
    own.add_schedule(f"a/{id}", "sum-of-pair", every=timedelta(days=1))
    listed = await ask(gateway(own), None, "GET", "schedules")
    assert (listed.status, [each["schedule_id"] for each in listed.json["schedules"]]) == (200, [id])
    assert f'the schedule "a/{id}" cannot be reached over HTTP' in caplog.text


async def test_the_problem_of_an_unknown_member_lists_the_members(own: Temporal) -> None:
    wrong = await ask(gateway(own), None, "POST", f"schedules/{own.schedules[0].id}/pause", {"reason": "x"})
    assert (wrong.status, wrong.json["errors"][0]["location"]) == (400, ["reason"])
    assert wrong.json["errors"][0]["message"].endswith(": the body may have note")
    made = Gateway(own, [expose(SumWorkflow, name="sums", operations=FOR_OPERATORS)], allow_anonymous=True)
    wrong = await ask(made, None, "POST", "sums/a/pause", {"note": "x"})
    assert wrong.json["errors"][0]["message"].endswith(": the body may have reason")


def test_mistakes_in_declarations_are_errors(own: Temporal) -> None:
    assert not FOR_OPERATORS & FOR_SCHEDULE_OPERATORS
    with pytest.raises(TemporalSettingsError, match=r"trigger_schedule is not an operation of expose\(\)"):
        expose(SumWorkflow, operations=[Operation.TRIGGER_SCHEDULE])
    with pytest.raises(TemporalSettingsError, match=r"terminate is not an operation of expose_schedules\(\)"):
        expose_schedules(operations=["terminate"])
    with pytest.raises(TemporalSettingsError, match=r"pause is not an operation of expose_schedules\(\)"):
        expose_schedules(operations="pause")
    with pytest.raises(TemporalSettingsError, match=r"batchcancel is not an operation of expose\(\)"):
        expose(SumWorkflow, operations=["batchcancel"])
    ids: Any = ["nightly"]
    with pytest.raises(TemporalSettingsError, match="takes ids one by one"):
        expose_schedules(ids)
    with pytest.raises(TemporalSettingsError, match=r"takes expose_schedules\(…\), not \['nightly'\]"):
        Gateway(own, [], allow_anonymous=True, schedules=ids)
    with pytest.raises(TemporalSettingsError, match='"a/b" cannot be reached over HTTP'):
        expose_schedules("a/b")
    with pytest.raises(TemporalSettingsError, match='a workflow has the name "sums" too'):
        Gateway(own, [expose(SumWorkflow, name="sums")], allow_anonymous=True, schedules=expose_schedules(name="sums"))
    with pytest.raises(TemporalSettingsError, match="Gateway needs a policy"):
        Gateway(own, [], schedules=expose_schedules())


def test_the_document_has_open_operations_only(own: Temporal) -> None:
    def operations(made: Gateway) -> set[str]:
        paths = openapi(made.endpoints, mount="", title="", version="")["paths"]
        return {operation["operationId"] for methods in paths.values() for operation in methods.values()}

    assert operations(gateway(own)) == {f"{operation}_schedules" for operation in FOR_SCHEDULE_OPERATORS}
    reading = Gateway(own, [], allow_anonymous=True, schedules=expose_schedules(name="jobs"))
    assert operations(reading) == {f"{operation}_jobs" for operation in FOR_SCHEDULE_READERS}


def test_specs_are_described_in_words() -> None:
    midnight = ScheduleCalendarSpec(hour=[ScheduleRange(0)], comment="midnight")
    spec = ScheduleSpec(
        cron_expressions=["0 3 * * *"],
        intervals=[ScheduleIntervalSpec(every=timedelta(minutes=90), offset=timedelta(seconds=5))],
        calendars=[midnight],
        skip=[midnight],
        start_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        jitter=timedelta(minutes=2),
        time_zone_name="Europe/Berlin",
    )
    assert spec_in_words(spec) == (
        "cron 0 3 * * * and every 1 h 30 min, offset by 5 s and calendar midnight, except 1 calendars, "
        "from 2026-01-01T00:00:00+00:00, up to 2 min later, in Europe/Berlin"
    )
    assert spec_in_words(ScheduleSpec()) == "never"
