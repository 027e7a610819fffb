"""Observers of an engine learn of commits, runs, steps and calls, and cannot disturb it."""

import asyncio
from pathlib import Path

import pytest

from durably.engine.core.calls import Unreached
from durably.engine.model.runs import RunStatus, UpdateKind
from durably.engine.model.subscriptions import EndedCall, Group, Observer, RunChange
from durably.engine.sqlite.engine import SqliteEngine

from ..conftest import opened, run_to_end, send
from ..small_app import SmallApp, Steps


class Recorder(Observer):
    def __init__(self) -> None:
        self.commits: list[tuple[list[RunChange], Group]] = []
        self.calls: list[EndedCall] = []
        self.was_called = asyncio.Event()

    def on_commit(self, changes: list[RunChange], group: Group) -> None:
        self.commits.append((changes, group))

    def on_call(self, call: EndedCall) -> None:
        self.calls.append(call)
        self.was_called.set()

    @property
    def changes(self) -> list[RunChange]:
        return [change for changes, _ in self.commits for change in changes]


async def test_observer_gets_the_rows_of_each_commit_with_times(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("order", retries=1)
    def order(steps: Steps) -> object:
        return steps.run("price", lambda: 1 / (app.executions["price"] - 1))

    recorder = Recorder()
    await engine.sync_app(app.sync_request())
    engine.observe(recorder)
    run = await run_to_end(engine, "order")
    assert run.status == RunStatus.COMPLETED
    assert [change.kind for change in recorder.changes] == [
        UpdateKind.RUN_STARTED,
        UpdateKind.RETRYING,
        UpdateKind.STEP_COMPLETED,
        UpdateKind.RUN_COMPLETED,
    ]
    created, _, step, ended = recorder.changes
    assert step.began is not None
    assert created.at <= step.began <= step.at <= ended.at
    assert run.started_at is not None
    assert ended.began == round(run.started_at.timestamp() * 1000)
    assert all(group.committed and not group.failed and group.seconds > 0 for _, group in recorder.commits)


async def test_an_observer_gets_each_call_with_its_delay_and_time(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("order")
    def order(steps: Steps) -> object:
        return steps.run("price", lambda: 40)

    recorder = Recorder()
    engine.observe(recorder)
    await engine.sync_app(app.sync_request())
    await run_to_end(engine, "order")
    assert [call.function_id for call in recorder.calls] == ["app-order", "app-order"]
    assert all(call.delay >= 0 and call.seconds > 0 for call in recorder.calls)


async def test_an_observer_gets_calls_that_did_not_reach_the_app(engine: SqliteEngine, app: SmallApp) -> None:
    @app.function("order")
    def order(steps: Steps) -> object:
        return None

    request = app.sync_request()
    for function in request.functions:
        for step in function.steps.values():
            step.runtime.url = "http://127.0.0.1:9/"
    recorder = Recorder()
    engine.observe(recorder)
    await engine.sync_app(request)
    await send(engine, "order")
    await recorder.was_called.wait()
    assert isinstance(recorder.calls[0].answer, Unreached)


async def test_a_failing_observer_is_logged_and_disturbs_nothing(
    engine: SqliteEngine, app: SmallApp, caplog: pytest.LogCaptureFixture
) -> None:
    @app.function("order")
    def order(steps: Steps) -> object:
        return 42

    class Broken(Observer):
        def on_commit(self, changes: list[RunChange], group: Group) -> None:
            raise RuntimeError("no room")

        def on_call(self, call: EndedCall) -> None:
            raise RuntimeError("no room")

    recorder = Recorder()
    engine.observe(Broken())
    engine.observe(recorder)
    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "order")
    assert run.status == RunStatus.COMPLETED
    assert recorder.changes[-1].kind is UpdateKind.RUN_COMPLETED
    assert len(recorder.calls) == 1
    assert "Broken.on_commit has failed" in caplog.text
    assert "Broken.on_call has failed" in caplog.text


async def test_a_transaction_that_fails_is_reported_as_failed(path: Path) -> None:
    recorder = Recorder()
    async with opened(path) as engine:
        engine.observe(recorder)
        with pytest.raises(Exception, match="no run"):
            await engine.cancel_run("01ABC")
        await engine.verify()
        groups = [group for _, group in recorder.commits]
    assert sum(group.failed for group in groups) == 1
    assert sum(group.committed for group in groups) >= 1, "that of verify"
