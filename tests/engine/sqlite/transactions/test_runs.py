"""Runs from an event to their end, on a real database and over real HTTP."""

import asyncio
import datetime as dt
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from durably.engine.model.runs import RunStatus, StepStatus, UpdateKind
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.call import CheckpointRequest
from durably.protocol.engine_errors import FunctionNotFoundError, RunNotFoundError
from durably.protocol.errors import ErrorData
from durably.protocol.events import Event
from durably.protocol.opcodes import Op

from ...conftest import ENDS, ended, only_run, opened, output, run_to_end, send, step_is
from ...small_app import SDK_HEADERS, Raised, SmallApp, StepFailed, Steps


async def test_steps_are_executed_once_and_their_memos_come_back(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("order")
    def order(steps: Steps) -> object:
        price = steps.run("price", lambda: {"amount": 40})
        steps.sleep("pause", "10ms")
        return {"total": price["amount"] + steps.run("shipping", lambda: 2), "who": steps.event.data["who"]}

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "order", who="ann")
    assert output(run) == {"total": 42, "who": "ann"}
    assert run.status == RunStatus.COMPLETED
    assert run.started_at is not None
    assert run.ended_at is not None
    assert run.created_at <= run.started_at <= run.ended_at
    assert app.executions == {"price": 1, "shipping": 1}
    steps = await engine.run_steps(run.id)
    assert [(step.id, step.op, step.status) for step in steps] == [
        ("price", "StepRun", StepStatus.COMPLETED),
        ("pause", "Sleep", StepStatus.COMPLETED),
        ("shipping", "StepRun", StepStatus.COMPLETED),
    ]
    assert [len(call.ctx.stack.stack or []) for call in app.calls if call.ctx.stack] == [0, 1, 2, 3]


async def test_many_parallel_steps_of_an_app_that_executes_one_a_call(engine: SqliteEngine, app: SmallApp) -> None:
    """Steps that shared its request, and are unknown to it, are called again."""

    @app.function("many")
    def many(steps: Steps) -> object:
        return sum(steps.parallel(*(steps.running(f"step {n}", lambda n=n: n) for n in range(100))))  # type: ignore[misc]

    await engine.sync_app(app.sync_request())
    assert output(await run_to_end(engine, "many")) == sum(range(100))
    assert app.executions == {f"step {n}": 1 for n in range(100)}
    assert len(app.calls) == 102


async def test_a_step_is_tried_again_and_its_error_can_be_caught(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("flaky", retries=1)
    def flaky(steps: Steps) -> object:
        try:
            steps.run("pay", lambda: 1 / 0)
        except StepFailed as error:
            return list(error.args)

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "flaky")
    assert output(run) == ["division by zero", "ZeroDivisionError"]
    assert app.executions["pay"] == 2
    assert [call.ctx.attempt for call in app.calls] == [0, 1, 0]
    assert {call.ctx.max_attempts for call in app.calls} == {2}
    (step,) = await engine.run_steps(run.id)
    assert (step.status, step.attempts, step.error) == (
        StepStatus.FAILED,
        2,
        ErrorData(name="ZeroDivisionError", message="division by zero"),
    )


async def test_a_failed_function_fails_its_run_and_wakes_its_failure_handler(
    engine: SqliteEngine, app: SmallApp
) -> None:
    caught: list[Event] = []

    @app.function("doomed", retries=0)
    def doomed(steps: Steps) -> object:
        raise ValueError("no good")

    only_doomed = "event.data.function_id == 'app-doomed'"
    triggers = [{"event": "inngest/function.failed", "expression": only_doomed}]

    @app.function("doomed-failure", triggers=triggers)
    def on_failure(steps: Steps) -> object:
        assert steps.event is not None
        caught.append(steps.event)
        return steps.event.data["error"]

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "doomed", n=1)
    assert run.status == RunStatus.FAILED
    # As the app wrote it, nulls included; failure handlers get it without them.
    assert output(run) == {"name": "ValueError", "message": "no good", "code": "unknown", "stack": None}
    (failed,) = await engine.list_events(name="inngest/function.failed")
    handler = await ended(engine, await only_run(engine, failed.id))
    assert output(handler)["message"] == "no good"
    data = caught[0].data
    assert data is not None
    assert (data["function_id"], data["run_id"]) == ("app-doomed", run.id)
    assert data["event"]["data"] == {"n": 1}
    assert data["events"] == [data["event"]]
    # The handler's own end announces nothing: it would continue forever.
    names = [event.event.name for event in await engine.list_events()]
    assert sorted(names) == ["doomed", "inngest/function.failed", "inngest/function.finished"]


async def test_retry_after_and_no_retry(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("picky")
    def picky(steps: Steps) -> object:
        if steps.attempt == 0:
            raise Raised("later", retry_after="1")
        raise Raised("never", x_inngest_no_retry="true")

    await engine.sync_app(app.sync_request())
    with engine.watch() as updates:
        await send(engine, "picky")
        seen = [update async for update in _until_end(updates)]
    retry = next(update for update in seen if update.kind == UpdateKind.RETRYING)
    assert retry.due_at is not None
    assert dt.timedelta(milliseconds=900) < retry.due_at - retry.at <= dt.timedelta(seconds=1)
    assert retry.error == "Raised: later"
    assert seen[-1].kind == UpdateKind.RUN_FAILED
    assert seen[-1].error == "Raised: never"
    assert len(app.calls) == 2


async def _until_end(updates):  # type: ignore[no-untyped-def]
    async for update in updates:
        yield update
        if update.kind in ENDS:
            return


async def test_parallel_steps_run_side_by_side(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("both")
    def both(steps: Steps) -> object:
        a, b, _ = steps.parallel(
            steps.running("a", lambda: 1), steps.running("b", lambda: 2), steps.asking("z", "Sleep", duration="20ms")
        )
        return a + b

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "both")
    assert output(run) == 3
    assert app.executions == {"a": 1, "b": 1}
    # One discovery, two targeted calls, one discovery after the last of the three.
    assert len(app.calls) == 4
    assert [call.ctx.disable_immediate_execution for call in app.calls] == [False, True, True, False]


async def test_a_raced_sleep_is_a_timeout(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("raced")
    def raced(steps: Steps) -> object:
        if not steps.has("timeout") and not steps.has("event"):
            steps.parallel(
                steps.asking("event", "WaitForEvent", event="never", timeout="1h", parallelMode="race"),
                steps.asking("timeout", "Sleep", duration="20ms", parallelMode="race"),
            )
        return "timed out" if steps.has("timeout") else "in time"

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "raced")
    assert output(run) == "timed out"
    assert await send(engine, "never")


async def test_invoke_returns_the_output_of_its_run(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("double", event="nothing")
    def double(steps: Steps) -> object:
        assert steps.event is not None
        assert steps.event.name == "inngest/function.invoked"
        return steps.event.data["n"] * 2

    @app.function("broken", event="nothing", retries=0)
    def broken(steps: Steps) -> object:
        raise ValueError("broken inside")

    @app.function("slow", event="nothing")
    def slow(steps: Steps) -> object:
        steps.sleep("long", "1h")

    @app.function("parent")
    def parent(steps: Steps) -> object:
        results = [steps.invoke("double it", "app-double", {"n": 21})]
        for step_id, function_id, timeout in (
            ("break it", "app-broken", None),
            ("miss it", "app-nowhere", None),
            ("lose patience", "app-slow", "20ms"),
        ):
            try:
                steps.invoke(step_id, function_id, timeout=timeout)
            except StepFailed as error:
                results.append(error.args[1])
        return results

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "parent")
    assert output(run) == [42, "ValueError", "FunctionNotFoundError", "InngestInvokeTimeoutError"]
    assert [run.status for run in await engine.list_runs(function_id="app-slow")] == [RunStatus.RUNNING]


async def test_a_cancelled_child_is_an_error_to_its_parent(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("child", event="nothing")
    def child(steps: Steps) -> object:
        steps.sleep("long", "1h")

    @app.function("parent")
    def parent(steps: Steps) -> object:
        try:
            steps.invoke("go", "app-child")
        except StepFailed as error:
            return error.args[1]

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "parent"))
    await step_is(engine, run_id, "go", StepStatus.WAITING)
    (started,) = await engine.list_runs(function_id="app-child")
    assert await engine.cancel_run(started.id)
    assert output(await ended(engine, run_id)) == "FunctionCancelledError"
    assert [event.event.name for event in await engine.list_events(name="inngest/function.cancelled")]


async def test_sleeping_run_can_be_cancelled(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("sleeper")
    def sleeper(steps: Steps) -> object:
        steps.sleep("long", "1h")

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "sleeper"))
    await step_is(engine, run_id, "long", StepStatus.SLEEPING)
    assert await engine.cancel_run(run_id)
    assert not await engine.cancel_run(run_id)
    run = await engine.get_run(run_id)
    assert run is not None
    assert run.status == RunStatus.CANCELLED
    assert output(run)["name"] == "FunctionCancelledError"
    with pytest.raises(RunNotFoundError, match="unknown"):
        await engine.cancel_run("unknown")


async def test_an_answer_after_a_cancel_changes_nothing(path: Path, engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("late")
    def late(steps: Steps) -> object:
        return "too late"

    await engine.sync_app(app.sync_request())
    app.gate.clear()
    run_id = await only_run(engine, await send(engine, "late"))
    await app.wait_for_calls(1)
    (call,) = await engine.run_calls(run_id)
    assert call.in_flight
    run = await engine.get_run(run_id)
    assert run is not None
    assert run.status == RunStatus.RUNNING
    assert await engine.cancel_run(run_id)
    app.gate.set()
    await engine.close()
    async with opened(path) as engine:
        run = await engine.get_run(run_id)
        assert run is not None
        assert run.status == RunStatus.CANCELLED


async def test_rerun_starts_with_the_same_event(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("again")
    def again(steps: Steps) -> object:
        assert steps.event is not None
        return steps.event.data["n"]

    await engine.sync_app(app.sync_request())
    first = await run_to_end(engine, "again", n=5)
    second = await ended(engine, await engine.rerun(first.id))
    assert (second.rerun_of, second.event_ids, output(second)) == (first.id, first.event_ids, 5)
    with pytest.raises(RunNotFoundError):
        await engine.rerun("unknown")
    app.functions.clear()
    await engine.sync_app(app.sync_request())
    with pytest.raises(FunctionNotFoundError, match="app-again"):
        await engine.rerun(first.id)


async def test_invocation_by_the_api_starts_one_run(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("direct", event="nothing")
    def direct(steps: Steps) -> object:
        assert steps.event is not None
        return [steps.event.data["n"], steps.event.user]

    await engine.sync_app(app.sync_request())
    receipt = await engine.invoke("app-direct", data={"n": 1}, user={"id": 7})
    assert output(await ended(engine, receipt.run_id)) == [1, {"id": 7}]
    assert [run.id for run in await engine.event_runs(receipt.event_id)] == [receipt.run_id]
    with pytest.raises(FunctionNotFoundError, match="app-other"):
        await engine.invoke("app-other", data={})


async def test_runs_are_listed_by_function_and_status(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("one")
    def one(steps: Steps) -> object:
        return 1

    @app.function("two")
    def two(steps: Steps) -> object:
        steps.sleep("long", "1h")

    await engine.sync_app(app.sync_request())
    ones = [(await run_to_end(engine, "one")).id for _ in range(3)]
    sleeping = await only_run(engine, await send(engine, "two"))
    await step_is(engine, sleeping, "long", StepStatus.SLEEPING)
    assert [run.id for run in await engine.list_runs()] == [sleeping, *reversed(ones)]
    assert [run.id for run in await engine.list_runs(status=RunStatus.COMPLETED)] == [*reversed(ones)]
    assert [run.id for run in await engine.list_runs(status=RunStatus.RUNNING)] == [sleeping]
    assert [run.id for run in await engine.list_runs(function_id="app-one", limit=2)] == [ones[2], ones[1]]
    assert [run.id for run in await engine.list_runs(cursor=ones[1])] == [ones[0]]
    await engine.cancel_run(sleeping)
    assert [run.id for run in await engine.list_runs(status=RunStatus.CANCELLED)] == [sleeping]
    assert await engine.list_runs(status=RunStatus.CANCELLED, function_id="app-one") == []
    assert await engine.list_runs(status=RunStatus.FAILED) == []
    assert await engine.run_calls(sleeping) == []
    assert await engine.run_batch("unknown") is None
    assert await engine.run_actions("unknown") is None
    assert await engine.run_steps("unknown") == []


async def test_live_run_shows_its_steps(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("busy", retries=5)
    def busy(steps: Steps) -> object:
        steps.parallel(
            steps.running("retrying", lambda: 1 / 0),
            steps.running("done", lambda: 1),
            steps.asking("asleep", "Sleep", duration="1h"),
            steps.asking("waiting", "WaitForEvent", event="x", timeout="2h"),
        )

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "busy"))
    for step, status in (("done", "completed"), ("asleep", "sleeping"), ("waiting", "waiting")):
        await step_is(engine, run_id, step, status)
    await step_is(engine, run_id, "retrying", "retrying", "failed")
    steps = {step.id: step for step in await engine.run_steps(run_id)}
    assert set(steps) == {"retrying", "done", "asleep", "waiting"}
    assert steps["retrying"].error == ErrorData(name="ZeroDivisionError", message="division by zero")
    due = steps["waiting"].due_at
    assert due is not None
    assert due - steps["waiting"].created_at == dt.timedelta(hours=2)


async def test_many_runs_at_once(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("small")
    def small(steps: Steps) -> object:
        assert steps.event is not None
        return steps.run("square", lambda: steps.event.data["n"] ** 2)  # type: ignore[union-attr]

    await engine.sync_app(app.sync_request())
    with engine.watch() as updates:
        await asyncio.gather(*(send(engine, "small", n=n) for n in range(200)))
        ends = 0
        async for update in updates:
            ends += update.kind in ENDS
            if ends == 200:
                break
    runs = await engine.list_runs(limit=500)
    assert sorted(msgspec.json.decode(run.output) for run in runs if run.output) == sorted(n * n for n in range(200))
    assert app.executions["square"] == 200


async def test_an_invocation_is_held_to_the_size_of_an_event(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("child")
    def child(steps: Steps) -> None: ...

    @app.function("parent")
    def parent(steps: Steps) -> object:
        try:
            steps.invoke("too much", "app-child", {"text": "x" * 600_000})
        except StepFailed as failure:
            return failure.args

    await engine.sync_app(app.sync_request())
    message, name = output(await run_to_end(engine, "parent"))
    assert name == "EventInvalidError"
    assert message.startswith("step 'too much' cannot invoke 'app-child': ")
    assert "at most 524288 are allowed" in message


async def test_delayed_call_is_stored_until_its_first_checkpoint(engine: SqliteEngine, app: SmallApp) -> None:
    """Even if it is due at once: the clock may be set back, and the engine restarted."""
    stored: list[int] = []

    async def count_stored() -> None:
        query = "SELECT count(*) FROM delayed_calls"
        stored.append(await engine._read(lambda connection: connection.execute(query).fetchone()[0]))

    @app.function("f")
    def f(steps: Steps) -> str:
        return "fine"

    app.before = lambda call: None if call.ctx.attempt else web.Response(status=206, body=b"[]", headers=SDK_HEADERS)
    await engine.sync_app(app.sync_request())
    app.gate.clear()
    run_id = await only_run(engine, await send(engine, "f"))
    await app.wait_for_calls(1)
    app.gate.set()
    app.gate.clear()
    await app.wait_for_calls(2)
    await count_stored()
    step = Op(id="a", op="StepRun", data=msgspec.Raw(b"1"))
    generation = app.calls[1].ctx.generation_id
    await engine.checkpoint(run_id, CheckpointRequest(run_id=run_id, generation_id=generation, steps=[step]))
    await count_stored()
    app.gate.set()
    await ended(engine, run_id)
    assert stored == [1, 0]
