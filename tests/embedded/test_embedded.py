"""Methods of ``Embedded``, the same in the leader and in a follower, and the path of its database."""

import asyncio
import datetime as dt
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from durably import Client, Context, ContextSync, Embedded, Event, TriggerEvent
from durably.comm import CommHandler
from durably.engine.model.runs import RunStatus
from durably.engine.model.settings import EngineSettings
from durably.protocol.engine_errors import (
    CancellationNotFoundError,
    FunctionNotFoundError,
    FunctionPausedError,
    RunNotFoundError,
    SelectionInvalidError,
    StepNotFoundError,
)

from ..waiting import async_eventually

SETTINGS = EngineSettings(close_grace=dt.timedelta(0))
SECOND = dt.timedelta(seconds=1)


class Leaving(BaseException):
    pass


def _cancel() -> None:
    raise asyncio.CancelledError


def serve(engine: Embedded) -> Client:
    client = Client(app_id="app", engine=engine)

    @client.create_function(fn_id="add", trigger=TriggerEvent(event="add"))
    async def add(ctx: Context) -> int:
        first = await ctx.step.run("first", lambda: 1)
        return first + await ctx.step.run("second", lambda number: number, 10)

    @client.create_function(fn_id="fail", trigger=TriggerEvent(event="fail"), retries=0)
    async def fail(ctx: Context) -> None:
        raise RuntimeError("on request")

    @client.create_function(fn_id="leave", trigger=TriggerEvent(event="leave"), retries=0)
    async def leave(ctx: Context) -> None:
        raise Leaving

    @client.create_function(fn_id="leave-sync", trigger=TriggerEvent(event="leave"), retries=0)
    def leave_sync(ctx: ContextSync) -> None:
        ctx.step.run("step", _cancel)

    @client.create_function(fn_id="wait", trigger=TriggerEvent(event="wait"))
    async def wait(ctx: Context) -> Any:
        signal = await ctx.step.wait_for_signal("signal", signal=ctx.event.data["for"], timeout=dt.timedelta(hours=1))
        return None if signal is None else signal.data

    CommHandler(client=client, framework="test", functions=[add, fail, wait, leave, leave_sync])
    return client


@pytest.fixture(params=["the leader", "a follower"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    engines = [Embedded(tmp_path / "durably.db", settings=SETTINGS) for _ in range(2)]
    clients = [serve(engine) for engine in engines]
    async with engines[0].running(), engines[1].running():
        yield clients[0 if request.param == "the leader" else 1]


@pytest.fixture
def engine(client: Client) -> Embedded:
    assert isinstance(client.engine, Embedded)
    return client.engine


async def start(client: Client, engine: Embedded, event: Event) -> str:
    """Send an event. Returns the run's id."""
    [event_id] = await client.send(event)
    [run] = await engine.event_runs(event_id)
    return run.id


async def until_ended(engine: Embedded, kind: str) -> int:
    """The number of runs that the last bulk operation affected, once it has ended."""
    [latest, *_] = await async_eventually(
        engine.list_replays if kind == "replay" else engine.list_cancellations,
        f"the {kind} has ended",
        is_right=lambda found: found[0].ended_at is not None,
    )
    return latest.affected


async def test_waiting_for_a_run(client: Client, engine: Embedded) -> None:
    run_id = await start(client, engine, Event(name="add"))
    assert (await engine.wait_for_run(run_id)).decode_output() == 11
    assert (await engine.wait_for_run(run_id, timeout=SECOND)).status == "Completed"
    waiting = await start(client, engine, Event(name="wait", data={"for": "go"}))
    with pytest.raises(TimeoutError, match=f"run {waiting} has not ended within 0.05 s"):
        await engine.wait_for_run(waiting, timeout=dt.timedelta(seconds=0.05))
    both = asyncio.gather(*(engine.wait_for_run(waiting) for _ in range(2)))
    while await engine.signal("go", 5) is None:
        pass
    assert [run.decode_output() for run in await both] == [5, 5]
    assert not await engine.cancel_run(waiting)
    for act in (engine.wait_for_run, engine.cancel_run):
        with pytest.raises(RunNotFoundError):
            await act("none")
    with pytest.raises(FunctionNotFoundError):
        await engine.invoke("app-none", {})
    receipt = await engine.invoke("app-add", {})
    assert receipt.run_id is not None
    assert (await engine.wait_for_run(receipt.run_id)).decode_output() == 11


async def test_waiting_for_a_run_survives_a_change_of_leader(tmp_path: Path) -> None:
    first, second = (Embedded(tmp_path / "durably.db", settings=SETTINGS) for _ in range(2))
    client, _ = serve(first), serve(second)
    await first.start()
    await second.start()
    try:
        run_id = await start(client, first, Event(name="wait", data={"for": "go"}))
        waiter = asyncio.create_task(second.wait_for_run(run_id))
        while (await first.run_steps(run_id)) == []:
            pass
        await first.stop()
        assert await second.get_run(run_id) is not None  # The next leader is asked if the last one did not answer.
        assert await second.signal("go", "later") == run_id
        assert (await asyncio.wait_for(waiter, 20)).decode_output() == "later"
    finally:
        await first.stop()
        await second.stop()


async def test_running_again_from_a_step(client: Client, engine: Embedded) -> None:
    run_id = await start(client, engine, Event(name="add"))
    await engine.wait_for_run(run_id)
    again = await engine.rerun(run_id, from_step="second", step_input=[20])
    run = await engine.wait_for_run(again)
    assert (run.decode_output(), run.rerun_of) == (21, run_id)
    assert (await engine.wait_for_run(await engine.rerun(run_id, from_step="second"))).decode_output() == 11
    with pytest.raises(StepNotFoundError, match="'first', 'second'"):
        await engine.rerun(run_id, from_step="third")
    with pytest.raises(ValueError, match="from_step"):
        await engine.rerun(run_id, step_input=[20])


async def test_searching_and_waiting_for_changes(client: Client, engine: Embedded) -> None:
    position = (await engine.wait_for_changes()).position
    waiting = asyncio.create_task(engine.wait_for_changes(after=position))
    run_id = await start(client, engine, Event(name="fail"))
    assert (await waiting).position > position
    run = await engine.wait_for_run(run_id)
    assert (await engine.search_runs(if_exp='output.message == "on request"')).runs == [run]
    found = await engine.search_events(name="fail", is_unmatched=False)
    assert [run.id for event in found.events for run in event.runs] == [run_id]
    overview = await engine.overview()
    assert sum(each.failed for each in overview.counts) == 1
    assert [concern.subject for concern in overview.concerns] == ["app-fail"]
    assert [load.function_id for load in await engine.function_loads()] == [
        load.function_id for load in overview.functions
    ]
    report = await engine.inspect_function("app-fail")
    assert report is not None
    assert report.sampled == 1
    assert [each.id for each in await engine.list_apps()] == ["app"]
    assert await engine.list_schedules() == []
    assert (await engine.count_matching_runs("app-fail", statuses=[RunStatus.FAILED])).count == 1


async def test_paused_function_starts_no_run(client: Client, engine: Embedded) -> None:
    await engine.pause_function("app-add")
    paused = {function.id: function.is_paused for function in await engine.list_functions()}
    assert [function_id for function_id, is_paused in paused.items() if is_paused] == ["app-add"]
    skipped = await start(client, engine, Event(name="add"))
    assert (await engine.wait_for_run(skipped)).status == "Skipped"
    with pytest.raises(FunctionPausedError):
        await engine.rerun(skipped)
    await engine.resume_function("app-add")
    await engine.replay_runs("app-add", statuses=["Skipped"])
    assert await until_ended(engine, "replay") == 1
    for act in (engine.pause_function, engine.resume_function):
        with pytest.raises(FunctionNotFoundError, match="app-none"):
            await act("app-none")


async def test_failed_runs_are_replayed(client: Client, engine: Embedded) -> None:
    runs = [await start(client, engine, Event(name="fail", data={"n": number})) for number in range(3)]
    for run_id in runs:
        assert (await engine.wait_for_run(run_id)).status == "Failed"
    begun = await engine.replay_runs("app-fail", if_exp="event.data.n > 0")
    assert (begun.function_id, begun.statuses) == ("app-fail", ("Failed",))
    assert await until_ended(engine, "replay") == 2
    assert {run.rerun_of for run in await engine.list_runs(function_id="app-fail")} == {None, *runs[1:]}
    with pytest.raises(SelectionInvalidError):
        await engine.replay_runs("app-fail", statuses=["Running"])
    with pytest.raises(ValueError, match="Broken"):
        await engine.replay_runs("app-fail", statuses=["Broken"])


async def test_bulk_cancellation_cancels_matching_runs(client: Client, engine: Embedded) -> None:
    runs = [await start(client, engine, Event(name="wait", data={"for": str(number)})) for number in range(3)]
    begun = await engine.cancel_runs("app-wait", if_exp="event.data.for != '1'")
    assert await until_ended(engine, "cancellation") == 2
    for number, run_id in enumerate(runs):
        run = await engine.get_run(run_id)
        assert run is not None
        assert (run.status == "Cancelled") is (number != 1)
    await engine.delete_cancellation(begun.id)
    assert await engine.list_cancellations() == []
    with pytest.raises(CancellationNotFoundError):
        await engine.delete_cancellation(begun.id)
    now = dt.datetime.now(dt.UTC)
    with pytest.raises(SelectionInvalidError, match="before"):
        await engine.cancel_runs("app-wait", started_after=now, started_before=now - SECOND)
    with pytest.raises(ValueError, match="started_before must have a time zone"):
        await engine.cancel_runs("app-wait", started_before=dt.datetime(2030, 1, 1))  # noqa: DTZ001


async def test_lists_have_no_limit_of_length(client: Client, engine: Embedded) -> None:
    await client.send([Event(name="other") for _ in range(600)])
    assert len(await engine.list_events(limit=600)) == 600
    assert await engine.list_runs(limit=1000) == []


def test_synchronous_code_has_the_same(tmp_path: Path) -> None:
    engine = Embedded(tmp_path / "durably.db", settings=SETTINGS)
    client = serve(engine)
    engine.start_sync()
    try:
        [event_id] = client.send_sync(Event(name="add"))
        [run] = engine.event_runs_sync(event_id)
        assert engine.wait_for_run_sync(run.id, timeout=20 * SECOND).decode_output() == 11
        assert engine.wait_for_run_sync(engine.rerun_sync(run.id, from_step="second")).decode_output() == 11
        engine.pause_function_sync("app-add")
        assert [function.is_paused for function in engine.list_functions_sync()] == [True, False, False, False, False]
        engine.resume_function_sync("app-add")
        assert engine.replay_runs_sync("app-fail").affected == 0
        engine.delete_cancellation_sync(engine.cancel_runs_sync("app-wait").id)
        assert engine.list_cancellations_sync() == []
        assert len(engine.list_replays_sync()) == 1
        assert engine.get_event_sync(event_id) is not None
        assert [event.id for event in engine.list_events_sync(name="add")] == [event_id]
    finally:
        engine.stop_sync()


FOR_SDKS = {
    "add_run_logs",
    "add_run_metadata",
    "add_traces",
    "checkpoint",
    "execute",
    "publish_messages",
    "read_messages",
    "receive_events",
    "report_outbox",
    "report_progress",
    "run_actions",
    "run_batch",
    "start_worker",
    "sync_app",
    "verify",
}
"""Methods that only the HTTP API and commands call."""


def test_every_method_has_a_synchronous_twin() -> None:
    shown = {name for name in dir(Embedded) if not name.startswith("_")}
    asynchronous = {name for name in shown if asyncio.iscoroutinefunction(getattr(Embedded, name))}
    assert {f"{name}_sync" for name in asynchronous - FOR_SDKS} <= shown


async def test_a_relative_path_is_resolved_once_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "durably.engine")
    monkeypatch.chdir(tmp_path)
    engine = Embedded("durably.db")
    (tmp_path / "elsewhere").mkdir()
    os.chdir("elsewhere")
    assert engine.path == tmp_path / "durably.db"
    async with engine.running():
        assert (tmp_path / "durably.db").exists()
    assert f"is now the leader of the database {tmp_path / 'durably.db'}" in caplog.text
    assert os.listdir() == []


async def test_a_database_without_functions_is_warned_of_when_something_is_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Embedded(tmp_path / "wrong.db")
    client = Client(app_id="app", engine=engine)
    async with engine.running():
        await client.send([Event(name="f"), Event(name="g")])
        assert "was sent and stored" not in caplog.text  # The line on the database says it.
        await client.send(Event(name="h"))
    assert caplog.text.count(f"the database {tmp_path}/wrong.db has no functions") == 1
    assert "or correct the path" in caplog.text


async def test_functions_that_are_not_served_are_named_and_the_path_is_not_blamed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Embedded(tmp_path / "durably.db")
    client = Client(app_id="app", engine=engine)
    _kept = client.create_function(fn_id="f", trigger=TriggerEvent(event="f"))(lambda ctx: None)
    async with engine.running():
        for _ in range(2):
            await client.send(Event(name="f"))
    assert caplog.text.count("the functions 'app-f' (in ") == 1
    assert "correct the path" not in caplog.text
