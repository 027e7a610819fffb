"""Reports of runs on Temporal: steps, attempts, calls, times, related runs."""

import asyncio
import datetime as dt

import msgspec

import durably
from durably.engine.model.runs import ModelUsage, Relation, RunStatus, SpanKind, StepStatus
from durably.protocol.opcodes import Opcode

from ...temporal.dev_server import DevServer
from ...waiting import async_eventually
from .running_apps import ended_runs, make_client, send, serving

HOUR = dt.timedelta(hours=1)


async def test_a_report_has_steps_attempts_events_and_related_runs(server: DevServer) -> None:
    app = make_client()
    event = f"{app.app_id}/go"
    failures = 1

    @app.create_function(fn_id="child", trigger=durably.TriggerEvent(event=f"{event}-child"))
    async def child(ctx: durably.Context) -> str:
        return "from the child"

    @app.create_function(fn_id="go", name="Go", trigger=durably.TriggerEvent(event=event))
    async def go(ctx: durably.Context) -> str:
        async def flaky() -> str:
            nonlocal failures
            failures -= 1
            durably.ai.record_usage(model="gpt", input_tokens=20, output_tokens=1)
            if failures >= 0:
                raise durably.RetryAfterError("not yet", 10)
            return "worked"

        first: str = await ctx.step.run("flaky", flaky)
        await ctx.step.sleep("nap", 50)
        await ctx.step.invoke("ask", function=child)
        await ctx.step.wait_for_event("reply", event=f"{event}-none", timeout=50)
        return first

    async with serving(server.address, app, [go, child]) as engine:
        event_id = await send(engine, event, {"n": 7})
        (run,) = await ended_runs(engine, event_id)
        report = await engine.inspect_run(run.id)
        assert report is not None
        assert (report.function_name, report.run.status) == ("Go", RunStatus.COMPLETED)
        assert [(step.id, step.op, step.status) for step in report.steps] == [
            ("flaky", Opcode.STEP_RUN, StepStatus.COMPLETED),
            ("nap", Opcode.SLEEP, StepStatus.COMPLETED),
            ("ask", Opcode.INVOKE_FUNCTION, StepStatus.COMPLETED),
            ("reply", Opcode.WAIT_FOR_EVENT, StepStatus.COMPLETED),
        ]
        flaky_step, nap, _, reply = report.steps
        assert msgspec.json.decode(flaky_step.output or b"") == "worked"
        assert (flaky_step.attempts, [each.error.message for each in flaky_step.failed_attempts]) == (2, ["not yet"])
        assert {SpanKind.RUNNING, SpanKind.RETRYING} <= {span.kind for span in flaky_step.spans}
        assert (flaky_step.usage, nap.usage) == ([ModelUsage("gpt", 40, 2)], [])
        assert report.run.usage == [ModelUsage("gpt", 40, 2)]
        assert [span.kind for span in nap.spans] == [SpanKind.SLEEPING]
        assert nap.ended_at is not None
        assert nap.ended_at - nap.created_at >= dt.timedelta(milliseconds=50)
        assert reply.awaited == f"{event}-none"
        assert SpanKind.RUNNING in {span.kind for span in report.spans}
        assert [(each.id, each.data) for each in report.events] == [(event_id, {"n": 7})]
        assert [(each.step, each.error.name, each.error.message) for each in await engine.run_attempts(run.id)] == [
            ("flaky", "RetryAfterError", "not yet")
        ]
        assert [step.id for step in await engine.run_steps(run.id)] == ["flaky", "nap", "ask", "reply"]
        assert await engine.run_calls(run.id) == []

        async def children() -> list[tuple[str, str | None]]:
            report = await engine.inspect_run(run.id)
            assert report is not None
            return [(each.relation or "", each.step) for each in report.children]

        assert await async_eventually(children, "the report has the invoked run") == [(Relation.INVOKED, "ask")]
        report = await engine.inspect_run(run.id)
        assert report is not None
        assert report.steps[2].child_run_id == report.children[0].id
        of_child = await engine.inspect_run(report.children[0].id)
        assert of_child is not None
        assert of_child.parent is not None
        assert (of_child.parent.id, of_child.parent.step) == (run.id, "ask")

        events = msgspec.json.decode(await engine.run_batch(run.id) or b"")
        assert [each["data"] for each in events] == [{"n": 7}]
        assert {"data": "worked"} in msgspec.json.decode(await engine.run_actions(run.id) or b"").values()
        assert await engine.inspect_run("unknown") is None
        assert await engine.run_steps("unknown") == []


async def test_live_run_shows_its_steps(server: DevServer) -> None:
    app = make_client()
    goes_on = asyncio.Event()
    began = asyncio.Event()

    @app.create_function(fn_id="go", trigger=durably.TriggerEvent(event=app.app_id))
    async def go(ctx: durably.Context) -> str:
        async def wait() -> str:
            began.set()
            await goes_on.wait()
            return "done"

        await ctx.step.run("work", wait)
        await ctx.step.sleep("nap", HOUR)
        return "awake"

    async with serving(server.address, app, [go]) as engine:
        receipt = await engine.invoke(f"{app.app_id}-go")
        run_id = receipt.run_id
        assert run_id is not None
        await began.wait()
        (call,) = await async_eventually(
            lambda: engine.run_calls(run_id),
            "the call is under way",
            is_right=lambda calls: calls and calls[0].in_flight,
        )
        assert call.attempt == 0
        run = await engine.get_run(run_id)
        assert run is not None
        assert (run.status, run.waiting) == (RunStatus.RUNNING, None)
        goes_on.set()

        run = await async_eventually(
            lambda: engine.get_run(run_id), "the run waits", is_right=lambda run: run is not None and run.waiting
        )
        assert run is not None
        assert run.waiting is not None
        assert (run.waiting.kind, run.waiting.step) == (StepStatus.SLEEPING, "nap")
        steps = await engine.run_steps(run_id)
        assert [(step.id, step.status) for step in steps] == [
            ("work", StepStatus.COMPLETED),
            ("nap", StepStatus.SLEEPING),
        ]


async def test_the_time_until_the_first_call_is_shown_as_queued(server: DevServer) -> None:
    app = make_client()
    began, goes_on = asyncio.Event(), asyncio.Event()

    @app.create_function(
        fn_id="one", trigger=durably.TriggerEvent(event=app.app_id), concurrency=[durably.Concurrency(limit=1)]
    )
    async def one(ctx: durably.Context) -> None:
        began.set()
        await goes_on.wait()

    async with serving(server.address, app, [one]) as engine:
        first = (await engine.invoke(f"{app.app_id}-one")).run_id
        await began.wait()
        second = (await engine.invoke(f"{app.app_id}-one")).run_id
        assert first is not None
        assert second is not None
        queued_from = dt.datetime.now(dt.UTC)
        await asyncio.sleep(0.2)  # The length of the bar.
        waited = dt.datetime.now(dt.UTC) - queued_from
        goes_on.set()
        await engine.wait_for_run(second)
        report = await engine.inspect_run(second)
    assert report is not None
    assert report.spans[0].kind is SpanKind.QUEUED
    assert report.spans[0].end is not None
    assert report.spans[0].end - report.spans[0].start >= waited
