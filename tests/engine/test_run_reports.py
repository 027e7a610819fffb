"""Reports of runs: all that the engine knows of a run, in one read."""

import msgspec

from durably.engine.http.codec import decoder_of, from_wire
from durably.engine.reports import Relation, RunReport, SpanKind
from durably.engine.sqlite_engine import SqliteEngine
from durably.engine.views import RunStatus, StepStatus

from .conftest import ended, only_run, run_to_end, send, step_is
from .small_app import SmallApp, StepFailed, Steps


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
    assert [span.start for span in spans] == sorted(span.start for span in spans)
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
    assert (of_child.parent.run_id, of_child.parent.relation) == (run.id, Relation.INVOKED)
    assert (of_child.parent.step, of_child.parent.status) == ("call the child", RunStatus.FAILED)
    assert of_rerun.parent is not None
    assert (of_rerun.parent.run_id, of_rerun.parent.relation) == (run.id, Relation.RERUN)


async def test_no_run_has_no_report(engine: SqliteEngine) -> None:
    assert await engine.inspect_run("none") is None
