"""``durably.TemporalEngine``: the functions of an app, in its own processes, on a Temporal server."""

import asyncio
import contextlib
import datetime as dt
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import durably
from durably import Client, Context, ContextSync, Event, Function, TemporalEngine, TriggerCron, TriggerEvent
from durably.comm import CommHandler
from durably.engine.core.errors import ConfigInvalidError
from durably.engine.settings import EngineSettings
from durably.errors import EngineNotStartedError, SendEventsError
from durably.temporal import TemporalSettingsError

from ...temporal.dev_server import DevServer

WAIT_SECONDS = 60
NO_GRACE = EngineSettings(close_grace=dt.timedelta(0))


async def within(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(WAIT_SECONDS):
        return await awaitable


class App:
    """An app with functions that report what they did."""

    def __init__(self, engine: TemporalEngine, app_id: str, **options: Any) -> None:
        self.engine = engine
        self.client = Client(app_id=app_id, engine=engine, is_production=False, **options)
        self.reports: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def report(self, what: Any) -> Any:
        self._loop.call_soon_threadsafe(self.reports.put_nowait, what)
        return what

    async def reported(self) -> Any:
        return await within(self.reports.get())

    def serve(self, *make: Callable[["App"], Function[Any]]) -> "App":
        CommHandler(client=self.client, framework="test", functions=[each(self) for each in make])
        return self

    async def send(self, name: str, **data: Any) -> None:
        await self.client.send(Event(name=f"{self.client.app_id}/{name}", data=data))


def add(app: App) -> Function[Any]:
    @app.client.create_function(fn_id="add", trigger=TriggerEvent(event=f"{app.client.app_id}/add"))
    async def add(ctx: Context) -> None:
        first = await ctx.step.run("first", lambda: ctx.event.data["n"])
        await ctx.step.sleep("nap", dt.timedelta(milliseconds=10))
        second = await ctx.step.run("second", lambda: threading.current_thread().name)
        await ctx.step.run("report", app.report, [first, second])

    return add


def add_sync(app: App) -> Function[Any]:
    @app.client.create_function(fn_id="add-sync", trigger=TriggerEvent(event=f"{app.client.app_id}/add-sync"))
    def add_sync(ctx: ContextSync) -> None:
        first = ctx.step.run("first", lambda: ctx.event.data["n"])
        ctx.step.sleep("nap", dt.timedelta(milliseconds=10))
        ctx.step.run("report", app.report, [first, 2])

    return add_sync


def hold(app: App) -> Function[Any]:
    @app.client.create_function(fn_id="hold", trigger=TriggerEvent(event=f"{app.client.app_id}/hold"))
    async def hold(ctx: Context) -> None:
        await ctx.step.run("first", app.report, "first")

        async def wait() -> None:
            app.report("held")
            await asyncio.sleep(WAIT_SECONDS)

        await ctx.step.run("wait", wait)

    return hold


def hold_no_more(app: App) -> Function[Any]:
    """The same function in another process, in which nothing holds it."""

    @app.client.create_function(fn_id="hold", trigger=TriggerEvent(event=f"{app.client.app_id}/hold"))
    async def hold(ctx: Context) -> None:
        await ctx.step.run("first", app.report, "first")
        await ctx.step.run("wait", app.report, f"continued in attempt {ctx.attempt}")

    return hold


async def test_functions_run_in_the_process(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "in-process").serve(add, add_sync)
    async with app.engine.running():
        await app.send("add", n=1)
        assert (await app.reported())[0] == 1
        await app.send("add-sync", n=2)
        assert await app.reported() == [2, 2]


async def test_events_are_sent_and_operations_executed_in_any_thread(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "threads").serve(add_sync)
    async with app.engine.running():
        event = Event(name="threads/add-sync", data={"n": 3})
        await asyncio.to_thread(app.client.send_sync, event)
        assert await app.reported() == [3, 2]
        assert await asyncio.to_thread(app.engine.get_run_sync, "01ARZ3NDEKTSV4RRFFQ69G5FAV") is None


async def test_calls_of_a_process_that_stops_continue_elsewhere_at_once(server: DevServer) -> None:
    first = App(TemporalEngine(server.address, settings=NO_GRACE), "stops").serve(hold)
    second = App(TemporalEngine(server.address), "stops").serve(hold_no_more)
    await first.engine.start()
    try:
        await first.send("hold")
        assert [await first.reported() for _ in range(2)] == ["first", "held"]
        await second.engine.start()
        began = time.monotonic()
    finally:
        await first.engine.stop()
    try:
        assert await second.reported() == "continued in attempt 0"  # and the first step does not run again
        assert time.monotonic() - began < 10, "less than the heartbeat timeout of a call that is lost"
    finally:
        await second.engine.stop()


async def test_a_server_that_is_away_delays_the_start_and_fails_sends_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = DevServer()
    app = App(TemporalEngine(server.address), "away", request_timeout=dt.timedelta(seconds=0.2)).serve(add_sync)
    with caplog.at_level(logging.WARNING, "durably.engine"):
        await within(app.engine.start())
    try:
        assert f"the Temporal server at {server.address} cannot be reached" in caplog.text
        with pytest.raises(SendEventsError, match=r"did not answer within 0\.2 s: the Temporal server at"):
            await app.client.send(Event(name="away/add-sync"))
        await asyncio.to_thread(server.start)
        await within(_until_sent(app, Event(name="away/add-sync", data={"n": 4})))
        assert await app.reported() == [4, 2]
    finally:
        await app.engine.stop()
        server.kill()


async def _until_sent(app: App, event: Event) -> None:
    """Until the functions are synced, an event finds none."""
    while app.reports.empty():
        with contextlib.suppress(SendEventsError):
            await app.client.send(event)


async def test_invalid_options_prevent_the_start(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "invalid")

    @app.client.create_function(fn_id="bad", trigger=TriggerCron(cron="@daily"))
    async def bad(ctx: Context) -> None: ...

    CommHandler(client=app.client, framework="test", functions=[bad])
    with pytest.raises(ConfigInvalidError, match=r"'invalid-bad'.*@daily"):
        await app.engine.start()


async def test_invalid_settings_prevent_the_start() -> None:
    engine = TemporalEngine("no port")
    with pytest.raises(TemporalSettingsError, match="no port"):
        await engine.start()


async def test_a_process_without_workers_sends_events_and_runs_none(server: DevServer) -> None:
    web = App(TemporalEngine(server.address, workers=False), "apart").serve(add_sync)
    worker = App(TemporalEngine(server.address), "apart").serve(add_sync)
    async with worker.engine.running(), web.engine.running():
        for number in range(5):
            await web.send("add-sync", n=number)
        assert sorted([(await worker.reported())[0] for _ in range(5)]) == [0, 1, 2, 3, 4]
        assert web.reports.empty()


async def test_a_test_run_does_not_connect(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "test-run").serve(add_sync)
    with pytest.raises(SendEventsError, match=r"does not connect to the engine on Temporal at .*TestEngine"):
        await app.send("add-sync")
    with pytest.raises(EngineNotStartedError, match="TestEngine"):
        await app.engine.list_functions()


async def test_a_stopped_engine_starts_again(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "again").serve(add_sync)
    for number in range(2):
        async with app.engine.running():
            await app.send("add-sync", n=number)
            assert await app.reported() == [number, 2]


def test_its_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"TemporalEngine.max_calls must be 1 or more, not 0"):
        TemporalEngine(max_calls=0)
    with pytest.raises(durably.errors.FunctionConfigInvalidError, match=r"a TemporalEngine\(…\)"):
        Client(app_id="shop", engine=7)  # type: ignore[arg-type]


def test_secrets_are_not_shown() -> None:
    engine = TemporalEngine("localhost:7233", api_key="secret-key")
    assert "secret-key" not in f"{engine!r} {vars(engine)!r}"
