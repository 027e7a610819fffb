"""Reports of runs: all that the engine knows of a run, in one read."""

import datetime as dt
import itertools
import re
import time
from pathlib import Path

import msgspec
from aiohttp import web
from yarl import URL

from durably.cli.run_text import describe_attempts
from durably.engine.api.codec import decoder_of, from_wire
from durably.engine.api.dashboard.waterfall import lay_out
from durably.engine.model.records import MAX_ERROR_TEXT
from durably.engine.model.runs import FromStep, Relation, RunReport, RunStatus, Span, SpanKind, StepStatus, UpdateKind
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.opcodes import hash_step_id

from ..conftest import ended, only_run, opened, run_to_end, send, step_is
from ..small_app import Found, SmallApp, StepFailed, Steps, serve, serving


async def inspect(engine: SqliteEngine, run_id: str) -> RunReport:
    """The report, as it also arrives over HTTP."""
    report = await engine.inspect_run(run_id)
    assert report is not None
    assert from_wire(decoder_of(RunReport).decode(msgspec.json.encode(report))) == report
    return report


async def test_steps_have_their_spans_in_the_order_of_time(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("order")
    def order(steps: Steps) -> object:
        price = steps.run("price", lambda: {"amount": 40})
        steps.sleep("pause", "10ms")
        steps.parallel(steps.running("left", lambda: 1), steps.running("right", lambda: 2))
        return price

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "order", who="ann")
    report = await inspect(engine, run.id)
    assert (report.run, report.function_name, report.error) == (run, "app-order", None)
    assert [event.data for event in report.events] == [{"who": "ann"}]
    price, pause, *branches = report.steps
    assert (price.id, price.status, price.output) == ("price", StepStatus.COMPLETED, msgspec.Raw(b'{"amount":40}'))
    assert [span.kind for span in price.spans] == [SpanKind.RUNNING]
    assert [(span.kind, span.start, span.end) for span in pause.spans] == [
        (SpanKind.SLEEPING, pause.created_at, pause.ended_at)
    ]
    assert {branch.id for branch in branches} == {"left", "right"}
    spans = [span for step in report.steps for span in step.spans]
    assert [step.spans[0].start for step in report.steps] == sorted(step.spans[0].start for step in report.steps)
    assert all(run.created_at <= span.start for span in [*spans, *report.spans])
    assert all(span.end is not None and span.start <= span.end for span in [*spans, *report.spans])


async def test_failed_attempts_and_errors_are_reported(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("flaky", retries=1)
    def flaky(steps: Steps) -> object:
        try:
            steps.run("doomed", lambda: 1 // 0)
        except StepFailed:
            raise ValueError("no luck") from None

    await engine.sync_app(app.sync_request())
    report = await inspect(engine, (await run_to_end(engine, "flaky")).id)
    (doomed,) = report.steps
    assert (doomed.status, doomed.attempts, doomed.output) == (StepStatus.FAILED, 2, None)
    assert doomed.error is not None
    assert doomed.error.name == "ZeroDivisionError"
    assert [(each.attempt, each.error.name) for each in doomed.failed_attempts] == [(0, "ZeroDivisionError")]
    assert [(each.attempt, each.error.message) for each in report.failed_attempts] == [(0, "no luck")]
    assert report.error is not None
    assert (report.error.name, report.error.message) == ("ValueError", "no luck")


async def test_a_call_that_did_not_reach_the_app_is_no_failed_attempt(engine: SqliteEngine) -> None:
    app, divisors = SmallApp(), iter([0, 1])

    @app.function("reload")
    def reload(steps: Steps) -> object:
        return steps.run("work", lambda: 1 // next(divisors))

    with engine.watch() as updates:
        async with serve(app):
            await engine.sync_app(app.sync_request())
            run_id = await only_run(engine, await send(engine, "reload"))
            async for update in updates:
                if update.kind is UpdateKind.RETRYING:
                    break
        async for update in updates:
            if update.kind is UpdateKind.UNREACHED:
                break
    (live,) = (await inspect(engine, run_id)).steps
    assert [(each.attempt, each.is_unreached) for each in live.failed_attempts] == [(0, False), (1, True)]
    async with serve(app, URL(app.url).port):
        run = await ended(engine, run_id)
    report = await inspect(engine, run_id)
    (work,) = report.steps
    assert (work.status, work.attempts) == (StepStatus.COMPLETED, 2)
    assert [(each.attempt, each.is_unreached) for each in work.failed_attempts] == [(0, False), (1, True)]
    assert run.failed_attempts == 1
    row = lay_out(report, dt.datetime.now(dt.UTC)).rows[1]
    assert [bar.outcome for bar in row.bars if bar.kind is SpanKind.RUNNING][-1] == "completed"
    assert (row.failures, row.marks) == (1, [])
    described = describe_attempts(report)
    assert described is not None
    assert re.search(r"work +1 +ZeroDivisionError", described)
    assert re.search(r"work +not reached +AppUnreachableError", described)


async def test_steps_under_way_have_open_spans(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("waiter")
    def waiter(steps: Steps) -> object:
        return steps.wait_for_event("wait", "go")

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "waiter"))
    await step_is(engine, run_id, "wait", "waiting")
    report = await inspect(engine, run_id)
    (wait,) = report.steps
    assert (wait.status, wait.awaited) == (StepStatus.WAITING, "go")
    assert [(span.kind, span.end) for span in wait.spans] == [(SpanKind.WAITING, None)]


async def test_a_call_under_way_is_an_open_span_of_the_run(engine: SqliteEngine, app: SmallApp) -> None:
    app.function("held")(lambda steps: None)
    app.gate.clear()
    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "held"))
    await app.wait_for_calls(1)
    report = await inspect(engine, run_id)
    assert (report.spans[-1].kind, report.spans[-1].end) == (SpanKind.RUNNING, None)
    app.gate.set()
    await ended(engine, run_id)


async def test_parents_and_children_are_linked(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("parent", retries=0)
    def parent(steps: Steps) -> object:
        return steps.invoke("call the child", "app-child", {"n": 1})

    @app.function("child", retries=0)
    def child(steps: Steps) -> object:
        raise ValueError("no")

    app.function("handler", event="inngest/function.failed")(lambda steps: None)
    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "parent")
    again = await engine.rerun(run.id)
    await ended(engine, again)
    report = await inspect(engine, run.id)
    child_id = report.steps[0].child_run_id
    assert child_id is not None
    links = {(link.function_id, link.relation, link.step) for link in report.children}
    assert links == {
        ("app-child", Relation.INVOKED, "call the child"),
        ("app-handler", Relation.ENDED, None),
        ("app-parent", Relation.RERUN, None),
    }
    assert report.parent is None
    of_child, of_rerun = await inspect(engine, child_id), await inspect(engine, again)
    assert of_child.parent is not None
    assert (of_child.parent.id, of_child.parent.relation) == (run.id, Relation.INVOKED)
    assert (of_child.parent.step, of_child.parent.status) == ("call the child", RunStatus.FAILED)
    assert of_rerun.parent is not None
    assert (of_rerun.parent.id, of_rerun.parent.relation) == (run.id, Relation.RERUN)


async def test_no_run_has_no_report(engine: SqliteEngine) -> None:
    assert await engine.inspect_run("none") is None


async def test_attempts_keep_their_times_and_tracebacks(engine: SqliteEngine, app: SmallApp) -> None:
    """Two steps that were found in different calls fail at the same attempt: both are kept."""

    def failing_once(steps: Steps) -> object:
        if steps.attempt == 0:
            raise ValueError("not yet")
        return "done"

    @app.function("flaky")
    def flaky(steps: Steps) -> object:
        return [steps.run(name, lambda: failing_once(steps)) for name in ("a", "b")]

    await engine.sync_app(app.sync_request())
    report = await inspect(engine, (await run_to_end(engine, "flaky")).id)
    for step in report.steps:
        assert [(each.attempt, each.error.name, each.error.message) for each in step.failed_attempts] == [
            (0, "ValueError", "not yet")
        ]
        kinds = [(span.kind, span.attempt) for span in step.spans if span.kind is not SpanKind.QUEUED]
        assert kinds == [(SpanKind.RUNNING, 0), (SpanKind.RETRYING, 0), (SpanKind.RUNNING, 1)]
        assert_in_order(step.spans)
    assert [step.id for step in report.steps] == ["a", "b"]
    assert_in_order([span for span in report.spans if span.kind is SpanKind.RUNNING])


def assert_in_order(spans: list[Span]) -> None:
    """No span begins before the one before it has ended."""
    for earlier, later in itertools.pairwise(spans):
        assert earlier.end is not None
        assert earlier.end <= later.start


async def test_a_long_traceback_is_shortened_in_the_middle(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("verbose")
    def verbose(steps: Steps) -> object:
        if steps.attempt == 0:
            error = {"name": "E", "message": "m", "stack": "first\n" + "x" * MAX_ERROR_TEXT + "\nlast"}
            raise Found({"id": hash_step_id("a"), "op": "StepError", "userland": {"id": "a"}, "error": error})
        return steps.run("a", lambda: 1)

    await engine.sync_app(app.sync_request())
    report = await inspect(engine, (await run_to_end(engine, "verbose")).id)
    (attempt,) = (attempt for step in report.steps for attempt in step.failed_attempts)
    assert attempt.error.stack is not None
    assert len(attempt.error.stack) < MAX_ERROR_TEXT + 100
    assert attempt.error.stack.startswith("first\n")
    assert "… 11 characters are not kept …" in attempt.error.stack
    assert attempt.error.stack.endswith("\nlast")


async def test_steps_that_a_run_leaves_at_its_end_are_reported(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("sleeper")
    def sleeper(steps: Steps) -> object:
        steps.parallel(steps.asking("nap", "Sleep", duration="1h"), steps.asking("sign", "WaitForSignal", signal="go"))

    await engine.sync_app(app.sync_request())
    run_id = await only_run(engine, await send(engine, "sleeper"))
    await step_is(engine, run_id, "sign", "waiting")
    await engine.cancel_run(run_id)
    report = await inspect(engine, run_id)
    assert {(step.id, step.status, step.awaited) for step in report.steps} == {
        ("nap", StepStatus.UNFINISHED, None),
        ("sign", StepStatus.UNFINISHED, "go"),
    }
    assert [[span.end for span in step.spans] for step in report.steps] == [[report.run.ended_at]] * 2
    assert report.error is not None
    assert report.error.name == "FunctionCancelledError"


async def test_a_rerun_marks_the_results_that_it_took_over(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("two")
    def two(steps: Steps) -> object:
        return [steps.run("a", lambda: 1), steps.run("b", lambda: 2)]

    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "two")
    again = await engine.rerun(run.id, from_step=FromStep("b"))
    await ended(engine, again)
    report = await inspect(engine, again)
    assert {(step.id, step.is_copied, bool(step.spans)) for step in report.steps} == {
        ("a", True, False),
        ("b", False, True),
    }
    assert not any(step.is_copied for step in (await inspect(engine, run.id)).steps)


async def test_times_and_arguments_that_an_app_sends_are_kept(engine: SqliteEngine, app: SmallApp) -> None:
    """The app's clock is an hour ahead."""
    hour = 3600 * 10**9

    @app.function("timed")
    def timed(steps: Steps) -> object:
        if steps.has("a"):
            return steps.run("a")
        now = time.time_ns() + hour
        op = {
            "id": hash_step_id("a"),
            "op": "StepRun",
            "userland": {"id": "a"},
            "data": 1,
            "opts": {"input": [{"n": 1}]},
        }
        raise Found({**op, "timing": {"a": now - 3_000_000, "b": 2_000_000}})

    await engine.sync_app(app.sync_request())
    report = await inspect(engine, (await run_to_end(engine, "timed")).id)
    (step,) = report.steps
    (span,) = step.spans
    assert step.input == msgspec.Raw(b'[{"n":1}]')
    assert report.run.ended_at is not None
    assert span.end is not None
    assert report.run.created_at <= span.start <= span.end
    assert span.end - span.start <= dt.timedelta(milliseconds=2)
    assert span.end <= report.run.ended_at + dt.timedelta(milliseconds=1)


async def test_a_run_keeps_the_version_of_its_app(path: Path, app: SmallApp) -> None:
    app.function("f")(lambda steps: 1)
    runs = []
    async with opened(path) as engine:
        for version in ("v1", "v2"):
            await engine.sync_app(msgspec.structs.replace(app.sync_request(), app_version=version))
            runs.append((await run_to_end(engine, "f")).id)
    async with opened(path) as engine:
        runs.append((await run_to_end(engine, "f")).id)
        assert [(await inspect(engine, run_id)).app_version for run_id in runs] == ["v1", "v2", "v2"]


async def test_repeated_requests_of_a_fetch_are_attempts(engine: SqliteEngine, app: SmallApp) -> None:
    requests: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        requests.append(request)
        if len(requests) == 1:
            assert request.transport is not None
            request.transport.close()
        return web.Response()

    async with serving(answer) as url:

        @app.function("fetcher")
        def fetcher(steps: Steps) -> object:
            return steps.options("get", "Gateway", url=url, method="POST")

        await engine.sync_app(app.sync_request())
        report = await inspect(engine, (await run_to_end(engine, "fetcher")).id)
    (step,) = report.steps
    assert [attempt.attempt for attempt in step.failed_attempts] == [0]
    assert [span.kind for span in step.spans] == [SpanKind.RUNNING, SpanKind.RETRYING, SpanKind.RUNNING]
