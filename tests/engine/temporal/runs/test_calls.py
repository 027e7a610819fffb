"""Calls as activities: apps that are down, lost and stopping workers, stale and large checkpoints."""

import asyncio
import datetime as dt
import itertools
import uuid
from typing import Any

import msgspec
import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

import durably
from durably.engine.core.calls import Answer, CallData, Unreached
from durably.engine.temporal.ids import run_workflow_id
from durably.engine.temporal.messages import CallInput
from durably.engine.temporal.runs import calls
from durably.engine.temporal.runs.activities import unreached_seconds
from durably.protocol.call import CheckpointRequest
from durably.protocol.engine_errors import StaleCallError, TooLargeError
from durably.protocol.errors import ErrorData
from durably.protocol.opcodes import Op, Opcode, hash_step_id

from ....temporal.dev_server import DevServer
from ..running_apps import QUICK, RunningApp, RunOfApp, make_client, on, running


def simple(app: durably.Client, *, retries: int = 0) -> durably.Function[Any]:
    @app.create_function(fn_id="simple", trigger=on(app, "simple"), retries=retries)
    async def function(ctx: durably.Context) -> str:
        return "done"

    return function


async def test_an_app_that_is_down_adds_no_events_to_the_history(
    server: DevServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_client()
    async with running(server.address, app, simple(app)) as on_temporal:
        attempts = 0

        async def call(call_input: CallInput, data: CallData) -> Answer:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                return Unreached(ErrorData(name="ConnectError", message="connection refused"))
            return await on_temporal.call_function(call_input, data)

        on_temporal.caller = call
        run = await on_temporal.start("simple")
        assert await run.result() == "done"
        assert attempts == 2
        assert f"calls do not reach the app '{app.app_id}', and are repeated: connection refused" in caplog.text
        assert f"calls reach the app '{app.app_id}' again" in caplog.text
        assert "Traceback" not in caplog.text
        types = await run.event_types()
        assert types.count("ACTIVITY_TASK_SCHEDULED") == 1
        assert types.count("ACTIVITY_TASK_STARTED") == 1
        scheduled = (await run.history()).events[types.index("ACTIVITY_TASK_SCHEDULED")]
        attributes = scheduled.activity_task_scheduled_event_attributes
        assert attributes.retry_policy.maximum_attempts == 0, "it is repeated for as long as the app is down"
        assert attributes.schedule_to_close_timeout.ToSeconds() == 0


async def test_an_exception_of_the_caller_is_a_failed_attempt(server: DevServer) -> None:
    app = make_client()
    async with running(server.address, app, simple(app, retries=1)) as on_temporal:
        attempts = 0

        async def call(call_input: CallInput, data: CallData) -> Answer:
            nonlocal attempts
            attempts += 1
            raise ValueError("no")

        on_temporal.caller = call
        run = await on_temporal.start("simple")
        with pytest.raises(WorkflowFailureError):
            await run.result()
        assert attempts == 2


def test_a_call_is_repeated_at_most_sixty_times_an_hour() -> None:
    """Each attempt is an action of Temporal. This is the minimum time between attempts."""
    at = list(itertools.accumulate(map(unreached_seconds, range(1, 200)), initial=0.0))
    for start in at[:100]:
        assert sum(start <= each < start + 3600 for each in at) <= 60
    assert max(map(unreached_seconds, range(1, 2000))) < 70, "an app that is back gets its calls soon"


def checkpoint(generation: int, output: bytes) -> CheckpointRequest:
    step = Op(id=hash_step_id("a"), op=Opcode.STEP_RUN, display_name="a", data=msgspec.Raw(output))
    return CheckpointRequest(run_id="", steps=[step], generation_id=generation)


async def _lose(on_temporal: RunningApp, losses: int) -> list[int]:
    """Make calls end without a heartbeat. Returns the generations of all calls."""
    generations: list[int] = []

    async def call(call_input: CallInput, data: CallData) -> Answer:
        generations.append(call_input.call.generation)
        if len(generations) <= losses:
            await asyncio.Event().wait()
        return await on_temporal.call_function(call_input, data)

    on_temporal.caller = call
    return generations


@pytest.mark.parametrize(("losses", "retries", "ends_well"), [(1, 0, True), (2, 0, False)])
async def test_the_second_loss_of_a_call_costs_an_attempt(
    server: DevServer, monkeypatch: pytest.MonkeyPatch, losses: int, retries: int, ends_well: bool
) -> None:
    monkeypatch.setattr(calls, "_HEARTBEAT_TIMEOUT", dt.timedelta(milliseconds=200))
    monkeypatch.setattr("durably.engine.temporal.runs.activities._send", lambda seconds: asyncio.Event().wait())
    app = make_client()
    async with running(server.address, app, simple(app, retries=retries)) as on_temporal:
        generations = await _lose(on_temporal, losses)
        run = await on_temporal.start("simple")
        if ends_well:
            assert await run.result() == "done"
            assert generations == sorted(set(generations)), "each call has a generation of its own"
            assert len(generations) == losses + 1
        else:
            with pytest.raises(WorkflowFailureError) as failure:
                await run.result()
            assert isinstance(failure.value.cause, ApplicationError)
            assert failure.value.cause.type == "WorkerLostError"


async def test_a_call_that_takes_too_long_fails_its_attempt(server: DevServer) -> None:
    app = make_client()
    settings = msgspec.structs.replace(QUICK, call_timeout=dt.timedelta(milliseconds=200))
    async with running(server.address, app, simple(app), settings=settings) as on_temporal:
        await _lose(on_temporal, 1)
        with pytest.raises(WorkflowFailureError) as failure:
            await (await on_temporal.start("simple")).result()
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type == "CallTimeoutError"


async def test_a_worker_that_stops_returns_its_calls_to_another(server: DevServer) -> None:
    app = make_client()
    async with running(server.address, app, simple(app)) as on_temporal:
        first, entered = True, asyncio.Event()
        generations: list[int] = []

        async def call(call_input: CallInput, data: CallData) -> Answer:
            nonlocal first
            generations.append(call_input.call.generation)
            if first:
                first = False
                entered.set()
                await asyncio.Event().wait()
            return await on_temporal.call_function(call_input, data)

        on_temporal.caller = call
        run = await on_temporal.start("simple")
        await entered.wait()
        await asyncio.gather(*(worker.shutdown() for worker in on_temporal.workers))
        async with on_temporal.working():
            assert await run.result() == "done"
        assert generations == [1, 2]


async def test_the_function_of_a_cancelled_run_stops(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_HEARTBEAT_TIMEOUT", dt.timedelta(seconds=1))
    app = make_client()
    entered, stopped = asyncio.Event(), asyncio.Event()

    @app.create_function(fn_id="endless", trigger=on(app, "endless"))
    async def endless(ctx: durably.Context) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with running(server.address, app, endless) as on_temporal:
        run = await on_temporal.start("endless")
        await entered.wait()
        await on_temporal.engine.cancel_run(run.id)
        async with asyncio.timeout(30):
            await stopped.wait()


async def test_checkpoints_are_refused_when_stale_or_too_large_and_harmless_when_repeated(server: DevServer) -> None:
    app = make_client()

    @app.create_function(fn_id="steps", trigger=on(app, "steps"))
    async def steps(ctx: durably.Context) -> Any:
        return await ctx.step.run("a", lambda: "from the app")

    async with running(server.address, app, steps) as on_temporal:

        async def call(call_input: CallInput, data: CallData) -> Answer:
            if call_input.call.generation == 1:
                for _ in range(2):
                    await on_temporal.engine.checkpoint(data.run_id, checkpoint(1, b'"first"'))
                with pytest.raises(StaleCallError):
                    await on_temporal.engine.checkpoint(data.run_id, checkpoint(9, b'"stale"'))
                with pytest.raises(TooLargeError, match="step 'a' returned 1600002 bytes"):
                    await on_temporal.engine.checkpoint(data.run_id, checkpoint(1, b'"' + b"x" * 1_600_000 + b'"'))
                return await on_temporal.call_function(
                    call_input, msgspec.structs.replace(data, memos=[(hash_step_id("a"), b'{"data":"first"}')])
                )
            return await on_temporal.call_function(call_input, data)

        on_temporal.caller = call
        run = await on_temporal.start("steps")
        assert await run.result() == "first"
        assert (await run.event_types()).count("WORKFLOW_EXECUTION_UPDATE_ACCEPTED") == 2
        with pytest.raises(StaleCallError):
            await on_temporal.engine.checkpoint(run.id, checkpoint(1, b'"late"'))


async def test_a_call_from_before_a_reset_cannot_checkpoint(server: DevServer) -> None:
    app = make_client()
    calls = asyncio.Queue[tuple[CallData, asyncio.Event]]()

    async with running(server.address, app, simple(app)) as on_temporal, asyncio.timeout(60):

        async def call(call_input: CallInput, data: CallData) -> Answer:
            may_end = asyncio.Event()
            await calls.put((data, may_end))
            await may_end.wait()
            return await on_temporal.call_function(call_input, data)

        on_temporal.caller = call
        run = await on_temporal.start("simple")
        before, _ = await calls.get()
        await reset(on_temporal, run)
        after, may_end = await calls.get()
        with pytest.raises(StaleCallError, match="reset"):
            await on_temporal.engine.checkpoint(run.id, checkpoint(before.call.generation, b'"late"'))
        await on_temporal.engine.checkpoint(run.id, checkpoint(after.call.generation, b'"kept"'))
        may_end.set()
        assert await on_temporal.client.get_workflow_handle(run_workflow_id(run.id)).result() == "done"


async def reset(on_temporal: RunningApp, run: RunOfApp) -> None:
    """Reset a run to its beginning, as a user does in Temporal's UI."""
    events = (await run.history()).events
    first = next(event.event_id for event in events if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)
    await on_temporal.client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=WorkflowExecution(workflow_id=run_workflow_id(run.id)),
            reason="test",
            workflow_task_finish_event_id=first,
            request_id=str(uuid.uuid4()),
        )
    )
