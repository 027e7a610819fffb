"""Times of steps of runs whose steps share one call."""

import time
from pathlib import Path

from durably import Context, Event
from durably.engine.model.runs import RunReport, SpanKind
from durably.execution.async_call import install_task_factory
from durably.io.background_loop import get_background_loop

from ..engine.model.test_run_reports import assert_in_order
from .app import App

SECONDS = 0.003


async def report_of_run(path: Path) -> RunReport:
    app = App(path, is_production=False)

    @app.function("steps", retries=1)
    async def steps(ctx: Context) -> None:
        def work(fails: bool) -> None:
            time.sleep(SECONDS)
            if fails:
                raise ValueError("not yet")

        for name in ("a", "b", "c"):
            await ctx.step.run(name, work, name == "c" and ctx.attempt == 0)

    async with app.running():
        run = await app.run(Event(name="steps"))
        report = await app.engine.inspect_run(run.id)
    assert report is not None
    return report


async def test_each_step_has_the_time_in_which_its_handler_ran(tmp_path: Path) -> None:
    report = await report_of_run(tmp_path / "durably.db")
    first, second, last = report.steps
    for step in (first, second):
        (span,) = step.spans
        assert span.end is not None
        assert (span.end - span.start).total_seconds() >= SECONDS
    kinds = [span.kind for span in last.spans if span.kind is not SpanKind.QUEUED]
    assert kinds == [SpanKind.RUNNING, SpanKind.RETRYING, SpanKind.RUNNING]
    assert_in_order([span for step in report.steps for span in step.spans])
    (attempt,) = last.failed_attempts
    assert attempt.error.stack is not None
    assert 'raise ValueError("not yet")' in attempt.error.stack
    # One call until the step failed, one for the step, and one for the rest.
    assert len([span for span in report.spans if span.kind is SpanKind.RUNNING]) == 3


async def test_the_engine_keeps_lines_of_the_logger_in_development(tmp_path: Path) -> None:
    """Also if the background event loop, which sends them, has run functions."""
    install_task_factory(get_background_loop().loop)
    app = App(tmp_path / "durably.db", is_production=False)

    @app.function("logs")
    async def logs(ctx: Context) -> None:
        ctx.logger.warning("top")
        await ctx.step.run("pay", lambda: ctx.logger.warning("in pay"))

    async with app.running():
        run = await app.run(Event(name="logs"))
        position, lines = None, []
        while len(lines) < 2:
            position = (await app.engine.wait_for_changes(after=position, run_id=run.id)).position
            report = await app.engine.inspect_run(run.id)
            assert report is not None
            lines = [(line.message, line.step) for line in report.logs]
    assert lines == [("top", None), ("in pay", "pay")]
