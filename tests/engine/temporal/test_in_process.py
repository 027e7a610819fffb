"""``durably.TemporalEngine``: the functions of an app, in its own processes, on a Temporal server."""

import asyncio
import datetime as dt
import logging
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import durably
from durably import Client, Context, ContextSync, Event, Function, TemporalEngine, TriggerCron, TriggerEvent
from durably.comm import CommHandler
from durably.embedded.process import NodeClosedError
from durably.embedded.temporal_node import TemporalNode
from durably.engine.model.settings import Durability, EngineSettings
from durably.errors import EngineNotStartedError, SendEventsError, TransportError, URLInvalidError
from durably.protocol.engine_errors import ConfigInvalidError, NotSupportedError
from durably.streams import follow
from durably.temporal import TemporalSettingsError

from ...temporal.dev_server import DevServer
from ...waiting import async_eventually

WAIT_SECONDS = 60
NO_GRACE = EngineSettings(close_grace=dt.timedelta(0))


async def within(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(WAIT_SECONDS):
        return await awaitable


class App:
    """An app with functions that report their steps."""

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
    """The same function in another process, in which nothing blocks it."""

    @app.client.create_function(fn_id="hold", trigger=TriggerEvent(event=f"{app.client.app_id}/hold"))
    async def hold(ctx: Context) -> None:
        await ctx.step.run("first", app.report, "first")
        await ctx.step.run("wait", app.report, f"continued in attempt {ctx.attempt}")

    return hold


def count_up(app: App) -> Function[Any]:
    @app.client.create_function(fn_id="count-up", trigger=[], retries=0)
    async def count_up(ctx: Context) -> None:
        for number in range(5):
            ctx.progress(number / 10, f"number {number}")
            await ctx.step.run(f"step-{number}", lambda: None)

    return count_up


def wait_for_signals(app: App) -> Function[Any]:
    @app.client.create_function(fn_id="wait-for-signals", trigger=[])
    async def wait_for_signals(ctx: Context) -> str:
        for name in ("first", "second"):
            await ctx.step.wait_for_signal(name, signal=f"{name}-{ctx.run_id}", timeout="1h")
        ctx.progress(1)
        return "done"

    return wait_for_signals


def speak(app: App) -> Function[Any]:
    @app.client.create_function(fn_id="speak", trigger=[])
    async def speak(ctx: Context) -> None:
        ctx.publish("words", "hello")

    return speak


async def test_progress_is_stored_and_messages_are_refused(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "reports").serve(count_up, speak)
    async with app.engine.running():
        counted = await app.engine.wait_for_run(str((await app.engine.invoke("reports-count-up")).run_id))
        assert counted.progress is not None
        assert (counted.progress.fraction, counted.progress.message) == (0.4, "number 4")
        spoken = await app.engine.wait_for_run(str((await app.engine.invoke("reports-speak")).run_id))
        assert spoken.status == "Failed"
        assert "NotSupportedError" in str(spoken.decode_output())
        shown = [each.data async for each in follow(app.client, spoken.id)]
        assert [each["status"] for each in shown] == ["Failed"]
        with pytest.raises(NotSupportedError, match="'everybody' is not the id of a run"):
            async for _ in follow(app.client, "everybody"):
                pass


async def test_listeners_see_the_state_and_the_changes_of_a_run(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "followed").serve(wait_for_signals)
    async with app.engine.running():
        run_id = str((await app.engine.invoke("followed-wait-for-signals")).run_id)
        streams = [app.client.run(run_id).stream(), app.client.run(run_id).stream(["$run", "$progress"])]
        seen: list[list[tuple[str, Any]]] = [[], []]

        async def listen(number: int) -> None:
            async for each in streams[number]:
                seen[number].append((each.topic, each.data))
                if each.topic == "$step" and each.data["status"] == "waiting":
                    await app.engine.signal(f"{each.data['step']}-{run_id}")

        async with asyncio.timeout(60):
            await asyncio.gather(listen(0), listen(1))
        steps = [(data["step"], data["status"]) for topic, data in seen[0] if topic == "$step"]
        for name in ("first", "second"):
            assert steps.index((name, "waiting")) < steps.index((name, "completed"))
        for each in seen:
            assert [data["fraction"] for topic, data in each if topic == "$progress"][-1] == 1
            runs = [data for topic, data in each if topic == "$run"]
            assert runs[0]["status"] in ("Scheduled", "Running")
            assert (runs[-1]["status"], runs[-1]["output"]) == ("Completed", "done")
        again = [each.data async for each in app.client.run(run_id).stream(["$run"])]
        assert [each["status"] for each in again] == ["Completed"]


async def test_functions_run_in_the_process_each_time_it_starts(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "in-process").serve(add, add_sync)
    for number in range(2):
        async with app.engine.running():
            await app.send("add", n=number)
            assert (await app.reported())[0] == number
            await app.send("add-sync", n=number)
            assert await app.reported() == [number, 2]


async def test_events_are_sent_and_operations_executed_in_any_thread(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "threads").serve(add_sync)
    async with app.engine.running():
        event = Event(name="threads/add-sync", data={"n": 3})
        await asyncio.to_thread(app.client.send_sync, event)
        assert await app.reported() == [3, 2]
        assert await asyncio.to_thread(app.engine.get_run_sync, "01ARZ3NDEKTSV4RRFFQ69G5FAV") is None


async def test_calls_of_a_process_that_stops_continue_elsewhere_at_once(
    server: DevServer, caplog: pytest.LogCaptureFixture
) -> None:
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
        assert time.monotonic() - began < 19, "less than the heartbeat timeout of a call that is lost"
        assert "Traceback" not in caplog.text
    finally:
        await second.engine.stop()


async def test_stop_commits_finished_steps_and_logs_them(server: DevServer, caplog: pytest.LogCaptureFixture) -> None:
    goes_on = asyncio.Event()

    def two_steps(app: App) -> Function[Any]:
        @app.client.create_function(fn_id="two", trigger=TriggerEvent(event="stopping/two"))
        async def two(ctx: Context) -> None:
            async def first() -> None:
                app.report("first")
                await goes_on.wait()

            await ctx.step.run("first", first)
            await ctx.step.run("second", app.report, "second")

        return two

    caplog.set_level(logging.INFO)
    app = App(TemporalEngine(server.address), "stopping").serve(two_steps)
    await app.engine.start()
    await app.send("two")
    assert await app.reported() == "first"
    stopping = asyncio.create_task(app.engine.stop())
    await async_eventually(lambda: app.engine._process._node is None, "the engine has begun to stop")
    goes_on.set()
    await stopping
    assert "this process stops, so the call ends and its answer has the finished steps" in caplog.text
    assert "refused" not in caplog.text
    assert f"is connected to Temporal at {server.address}, namespace default" in caplog.text
    assert "synced the app stopping with Temporal: stopping-two" in caplog.text
    async with app.engine.running():
        assert await app.reported() == "second"


async def test_a_send_during_a_stop_does_not_start_the_process_again(
    server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions and requests that are still ending may send events."""
    monkeypatch.setattr("durably.embedded.process.is_test_run", lambda: False)

    def ending(app: App) -> Function[Any]:
        @app.client.create_function(fn_id="ending", trigger=TriggerEvent(event="late-send/ending"))
        async def ending(ctx: Context) -> None:
            app.report("began")
            try:
                await asyncio.sleep(WAIT_SECONDS)
            except asyncio.CancelledError:
                await app.client.send(Event(name="late-send/add", data={"n": 1}))
                app.report("sent")
                raise

        return ending

    app = App(TemporalEngine(server.address, settings=NO_GRACE), "late-send").serve(ending, add)
    async with app.engine.running():
        await app.send("ending")
        assert await app.reported() == "began"
    assert await app.reported() == "sent"
    assert not app.engine._process._is_serving
    assert app.reports.empty()
    await app.engine.stop()


async def test_a_request_that_only_a_worker_can_answer_ends_with_the_process(server: DevServer) -> None:
    """Otherwise a thread that waits for it would keep the process alive forever."""
    app = App(TemporalEngine(server.address, settings=NO_GRACE), "unanswered").serve(add)
    await app.engine.start()
    node = app.engine._process._node
    assert node is not None
    engine = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_engine_of(node), node.loop))

    async def never(**_: Any) -> None:
        await asyncio.Event().wait()

    for name, error in (("checkpoint", NodeClosedError), ("invoke", TransportError)):
        setattr(engine, name, never)
        request = asyncio.run_coroutine_threadsafe(node.request(name, {}), node.loop)
        await asyncio.sleep(0.1)
        assert not request.done()
        app.reports.put_nowait((request, error))
    await within(app.engine.stop())
    while not app.reports.empty():
        request, error = app.reports.get_nowait()
        with pytest.raises(error):
            await within(asyncio.wrap_future(request))


async def _engine_of(node: TemporalNode) -> Any:
    return await asyncio.shield(node._engine)


async def test_a_process_that_lacks_the_function_uses_up_no_attempt(
    server: DevServer, caplog: pytest.LogCaptureFixture
) -> None:
    old = App(TemporalEngine(server.address), "deployed").serve(add_sync)
    new = App(TemporalEngine(server.address), "deployed").serve(add_sync, hold_no_more)
    await old.engine.start()
    try:
        await new.engine.start()
        await new.engine.stop()
        await old.send("hold")
        await async_eventually(
            lambda: "does not serve the function 'deployed-hold'" in caplog.text, "the missing function is logged"
        )
        await new.engine.start()
        assert await new.reported() == "first"
        assert await new.reported() == "continued in attempt 0"
    finally:
        await old.engine.stop()
        await new.engine.stop()


@pytest.mark.slow
async def test_unreachable_server_delays_the_start_and_fails_sends_in_time(
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

    async def send() -> bool:
        await app.client.send(event)
        return not app.reports.empty()

    await async_eventually(send, "the event starts a run", ignore=(SendEventsError,))


async def test_invalid_options_prevent_the_start(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "invalid")

    @app.client.create_function(fn_id="bad", trigger=TriggerCron(cron="@daily"))
    async def bad(ctx: Context) -> None: ...

    CommHandler(client=app.client, framework="test", functions=[bad])
    with pytest.raises(ConfigInvalidError, match=r"'invalid-bad'.*@daily") as refused:
        await app.engine.start()
    # The output of servers about it must not contain the engine's code.
    assert "workflow_engine" not in "".join(traceback.format_exception(refused.value))


async def test_invalid_settings_prevent_the_start() -> None:
    engine = TemporalEngine("no port")
    with pytest.raises(TemporalSettingsError, match="no port"):
        await engine.start()


async def test_process_without_workers_sends_events_and_runs_no_functions(server: DevServer) -> None:
    web = App(TemporalEngine(server.address, workers=False), "apart").serve(add_sync)
    worker = App(TemporalEngine(server.address), "apart").serve(add_sync)
    async with worker.engine.running(), web.engine.running():
        for number in range(5):
            await web.send("add-sync", n=number)
        assert sorted([(await worker.reported())[0] for _ in range(5)]) == [0, 1, 2, 3, 4]
        assert web.reports.empty()


async def test_events_wait_until_another_process_has_synced_the_functions(
    server: DevServer, caplog: pytest.LogCaptureFixture
) -> None:
    web = App(TemporalEngine(server.address, workers=False), "early").serve(add_sync)
    worker = App(TemporalEngine(server.address), "early").serve(add_sync)
    hasty = App(TemporalEngine(server.address, workers=False), "early", request_timeout=100).serve(add_sync)
    async with web.engine.running(), hasty.engine.running():
        with pytest.raises(
            SendEventsError, match=r"no process has synced the functions of the app 'early' yet"
        ) as raised:
            await hasty.send("add-sync", n=0)
        assert "did not answer" not in raised.value.message
        assert "sends no events yet: no process has synced the functions of the app 'early' yet" in caplog.text
        sending = asyncio.create_task(web.send("add-sync", n=1))
        async with worker.engine.running():
            await within(sending)
            assert await worker.reported() == [1, 2]


async def test_a_url_names_a_temporal_server(server: DevServer, monkeypatch: pytest.MonkeyPatch) -> None:
    by_argument = Client(app_id="url", engine=f"temporal://{server.address}/default?workers=false", is_production=True)
    monkeypatch.setenv("DURABLY_ENGINE_URL", f"temporal://{server.address}/default?workers=false")
    by_variable = Client(app_id="url")
    assert isinstance(by_variable.engine, TemporalEngine)
    assert by_variable.engine is by_argument.engine
    assert by_variable.in_process is not None
    assert by_variable.engine.temporal.settings.address == server.address
    monkeypatch.setenv("DURABLY_DEV", "http://127.0.0.1:8288")
    in_development = Client(app_id="url", engine=f"temporal://{server.address}")
    assert (in_development.in_process, in_development.origins.api) == (None, "http://127.0.0.1:8288")


@pytest.mark.parametrize(
    "url",
    [
        "temporal://",
        "temporal://[::1",
        "temporal://user@host:7233",
        "temporal://host?retries=1",
        "temporal://host?workers=true&workers=false",
        "temporal://host:7233/orders#shop",
    ],
)
def test_a_malformed_url_of_a_temporal_server_is_refused(url: str) -> None:
    with pytest.raises(URLInvalidError, match=r"engine is not the URL of a Temporal server: write it like temporal://"):
        Client(app_id="url", engine=url, is_production=True)


async def test_a_test_run_does_not_connect(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "test-run").serve(add_sync)
    with pytest.raises(SendEventsError, match=r"does not connect to the engine on Temporal at .*TestEngine"):
        await app.send("add-sync")
    with pytest.raises(EngineNotStartedError, match="TestEngine"):
        await app.engine.list_functions()


async def test_stop_does_not_wait_for_a_registration(server: DevServer) -> None:
    """The registration needs a workflow, which only this process executes."""

    def wait(app: App) -> Function[Any]:
        @app.client.create_function(fn_id="wait", trigger=TriggerEvent(event=f"{app.client.app_id}/wait"))
        async def wait(ctx: Context) -> None:
            await ctx.step.run("begin", lambda: app.report("begun"))
            await ctx.step.wait_for_event("news", event=f"{app.client.app_id}/news/{ctx.event.data['n']}", timeout="1h")

        return wait

    app = App(TemporalEngine(server.address, settings=NO_GRACE), "registering").serve(wait)
    for number in range(12):
        await within(app.engine.start())
        await app.send("wait", n=number)
        await app.reported()
        await asyncio.sleep(0.01 * number)
        began = time.monotonic()
        await within(app.engine.stop())
        assert time.monotonic() - began < 8


def test_its_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"TemporalEngine.max_calls must be 1 or more, not 0"):
        TemporalEngine(max_calls=0)
    with pytest.raises(durably.errors.FunctionConfigInvalidError, match=r"a TemporalEngine\(…\)"):
        Client(app_id="shop", engine=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"retention": dt.timedelta(days=30)}, "namespace"),
        ({"durability": Durability.OFF}, "server's database"),
        ({"max_calls": 7}, r"TemporalEngine\(max_calls=…\)"),
        ({"entropy": lambda size: bytes(size)}, "those of events"),
    ],
)
def test_settings_without_an_effect_on_temporal_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"EngineSettings\({next(iter(settings))}=…\) has no effect.*({reason})"):
        TemporalEngine("localhost:1", settings=EngineSettings(**settings))


def test_secrets_are_not_shown() -> None:
    engine = TemporalEngine("localhost:7233", api_key="secret-key")
    assert "secret-key" not in f"{engine!r} {vars(engine)!r}"


def fail_once(app: App) -> Function[Any]:
    @app.client.create_function(fn_id="fail", trigger=TriggerEvent(event=f"{app.client.app_id}/fail"))
    async def fail(ctx: Context) -> None:
        if ctx.attempt == 0:
            raise RuntimeError("once")
        app.report(ctx.attempt)

    return fail


async def test_development_repeats_failed_attempts_soon(server: DevServer) -> None:
    app = App(TemporalEngine(server.address), "dev-retries").serve(fail_once)
    async with app.engine.running():
        began = time.monotonic()
        await app.send("fail")
        assert await app.reported() == 1
        assert time.monotonic() - began < 10, "less than production's first delay"


async def test_a_limit_of_the_settings_is_kept(server: DevServer) -> None:
    settings = EngineSettings(max_steps=1)
    app = App(TemporalEngine(server.address, settings=settings), "max-steps").serve(add_sync)
    async with app.engine.running():
        [event_id] = await app.client.send(Event(name="max-steps/add-sync", data={"n": 1}))
        run = await within(app.engine.wait_for_run(await within(run_of(app, event_id))))
        assert "at most 1 steps" in run.decode_output()["message"]


async def run_of(app: App, event_id: str) -> str:
    """The id of the run that an event started. Lists of runs lag."""
    while True:
        for run in await app.engine.list_runs():
            if event_id in run.event_ids:
                return run.id
