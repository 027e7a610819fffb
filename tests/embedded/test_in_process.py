"""One process: sends, calls, checkpoints, errors, without HTTP."""

import asyncio
import datetime as dt
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from durably import (
    Client,
    Concurrency,
    Context,
    ContextSync,
    Embedded,
    Event,
    Middleware,
    TriggerEvent,
)
from durably.comm import CommHandler, CommRequest
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.errors import FunctionConfigInvalidError, SendEventsError, TransportError
from durably.protocol.engine_errors import (
    DatabaseLinkedError,
    DatabaseLockedError,
)

from .app import App, output_of

NO_GRACE = EngineSettings(close_grace=dt.timedelta(0))


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path / "durably.db", settings=NO_GRACE)


async def test_functions_run_on_the_servers_loop_and_sync_code_in_a_pool(app: App) -> None:
    @app.function("async")
    async def async_function(ctx: Context) -> list[int]:
        return [threading.get_ident(), await ctx.step.run("where", threading.get_ident)]

    @app.function("sync")
    def sync_function(ctx: ContextSync) -> int:
        return ctx.step.run("where", threading.get_ident)

    async with app.running():
        function_thread, handler_thread = output_of(await app.run(Event(name="async")))
        assert function_thread == threading.get_ident() != handler_thread
        assert output_of(await app.run(Event(name="sync"))) != threading.get_ident()


async def test_finished_steps_are_committed_and_the_function_continues(app: App) -> None:
    calls = []

    @app.function("steps")
    async def steps(ctx: Context) -> int:
        calls.append(ctx.run_id)
        return sum([await ctx.step.run(f"step-{number}", lambda: 1) for number in range(20)])

    async with app.running():
        run = await app.run(Event(name="steps"))
        assert output_of(run) == 20
        assert len(await app.engine.run_steps(run.id)) == 20
    assert len(calls) == 1


async def test_http_requests_call_no_functions(app: App) -> None:
    handler = app.serve()

    def request() -> CommRequest:
        query = {"fnId": "app-f", "stepId": "step"}
        return CommRequest(body=b"{}", headers={}, query_params=query, raw_request=None, request_url="http://x/")

    refused = await handler.handle("POST", request())
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")
    answers = [
        await handler.handle("PUT", request()),
        await handler.post(request()),
        await handler.put(request()),
        handler.post_sync(request()),
        handler.put_sync(request()),
    ]
    assert [answer.status_code for answer in answers] == [405] * 5
    assert (await handler.handle("GET", request())).status_code == 200


async def test_a_run_whose_state_is_larger_than_a_call_may_be(app: App) -> None:
    @app.function("large", checkpointing=False)
    async def large(ctx: Context) -> int:
        parts = [await ctx.step.run(f"part-{number}", lambda: "x" * 1_500_000) for number in range(4)]
        return sum(map(len, parts))

    async with app.running():
        assert output_of(await app.run(Event(name="large"))) == 6_000_000


async def test_the_apps_event_loop_may_block_for_the_engine(app: App) -> None:
    """The engine has a thread of its own."""

    @app.function("sends")
    async def sends(ctx: Context) -> list[str]:
        return app.client.send_sync(Event(name="f", id="from-a-function"))

    async with app.running():
        assert len(app.client.send_sync(Event(name="f"))) == 1
        assert app.engine.list_runs_sync() == []
        assert len(output_of(await app.run(Event(name="sends")))) == 1
        assert len(await asyncio.to_thread(app.client.send_sync, Event(name="f"))) == 1


async def test_running_runs_continue_after_a_restart(app: App, tmp_path: Path) -> None:
    began = asyncio.Event()

    @app.function("f")
    async def f(ctx: Context) -> int:
        first = await ctx.step.run("first", lambda: 1)

        async def second() -> int:
            began.set()
            return 2 if app.engine is not engine_before else await asyncio.sleep(3600, 0)

        return first + await ctx.step.run("second", second)

    engine_before = app.engine
    async with app.running():
        [event_id] = await app.client.send(Event(name="f"))
        await began.wait()
    app.engine = Embedded(tmp_path / "durably.db", settings=NO_GRACE)
    app.client = Client(app_id="app", engine=app.engine)
    async with app.running():
        assert output_of(await app.ended(event_id)) == 3


async def test_a_send_during_a_stop_stores_the_event_and_does_not_start_again(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions and requests that are still ending may send events."""
    monkeypatch.setattr("durably.embedded.process.is_test_run", lambda: False)
    began, sent = asyncio.Event(), list[str]()

    @app.function("ending")
    async def ending(ctx: Context) -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            sent.extend(await app.client.send(Event(name="later")))
            raise

    @app.function("later")
    async def later(ctx: Context) -> str:
        return "done"

    async with app.running():
        await app.client.send(Event(name="ending"))
        await began.wait()
    assert not app.engine._process._is_serving
    assert [run.ended_at for run in await app.engine.event_runs(sent[0])] == [None]
    async with app.engine.running():
        assert output_of(await app.ended(sent[0])) == "done"


async def test_a_stop_that_is_cancelled_closes_the_engine(app: App) -> None:
    began, goes_on = threading.Event(), threading.Event()

    @app.function("slow")
    def slow(ctx: ContextSync) -> str:
        began.set()
        goes_on.wait(20)
        return "done"

    app.serve()
    await app.engine.start()
    [event_id] = await app.client.send(Event(name="slow"))
    await asyncio.to_thread(began.wait)
    node = app.engine._process._node
    assert node is not None
    first = asyncio.create_task(app.engine.stop())
    await asyncio.sleep(0)
    first.cancel()
    goes_on.set()
    await app.engine.stop()
    assert not node.holds_database
    async with app.engine.running():
        assert output_of(await app.ended(event_id)) == "done"


async def test_a_request_starts_a_stopped_process_again(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be one of another server, or the process was only started briefly."""
    monkeypatch.setattr("durably.embedded.process.is_test_run", lambda: False)

    @app.function("f")
    async def f(ctx: Context) -> str:
        return "done"

    async with app.running():
        pass
    app.engine._process.start_with_request(asyncio.get_running_loop())
    assert output_of(await app.run(Event(name="f"))) == "done"
    await app.engine.stop()
    assert output_of(await app.run(Event(name="f"))) == "done"
    async with app.engine._process.running_with_server():
        pass
    await app.client.send(Event(name="f"))
    assert not app.engine._process._is_serving
    await app.engine.stop()


async def test_invalid_configuration_fails_the_start(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durably.functions.config._check", None)  # As with a stricter engine.

    @app.function("f", concurrency=[Concurrency(limit=1, key="not an expression ((")])
    async def f(ctx: Context) -> None: ...

    with pytest.raises(Exception, match=r"app-f.*concurrency"):
        async with app.running():
            pass


async def test_database_of_a_separate_engine_is_refused(app: App, tmp_path: Path) -> None:
    engine = await SqliteEngine.open(tmp_path / "durably.db")
    try:
        with pytest.raises(DatabaseLockedError, match="another engine"):
            await app.engine.start()
    finally:
        await engine.close()


async def test_two_engines_in_one_process_share_a_database(tmp_path: Path) -> None:
    """As in two processes: each has its own functions, and calls go to the process that serves them."""
    path = tmp_path / "durably.db"
    first, second = App(path, settings=NO_GRACE), App(path, settings=NO_GRACE)
    second.client = Client(app_id="second", engine=second.engine)

    @first.function("ping")
    async def ping(ctx: Context) -> Any:
        return await ctx.step.invoke_by_id("call", app_id="second", function_id="pong", data={"n": 1})

    @second.function("pong")
    async def pong(ctx: Context) -> Any:
        return {"got": dict(ctx.event.data or {}).get("n")}

    async with first.running(), second.running():
        assert output_of(await second.run(Event(name="ping"))) == {"got": 1}


def replace(database: Path) -> None:
    shutil.copy(database, database.with_name("other"))
    database.with_name("other").replace(database)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "the database was deleted"),
        (replace, "the database was replaced"),
        (lambda database: os.link(database, database.with_name("link")), "the database was given another name"),
    ],
    ids=["deleted", "replaced", "linked"],
)
async def test_every_process_reports_a_replaced_database(
    tmp_path: Path, harm: Callable[[Path], None], reason: str
) -> None:
    """No other database is created instead."""
    database = tmp_path / "durably.db"
    leader, follower = (App(database, settings=NO_GRACE) for _ in range(2))
    async with leader.running(), follower.running():
        await leader.client.send(Event(name="before"))
        harm(database)
        for each in (leader, follower, leader):
            with pytest.raises(SendEventsError, match=reason):
                await each.client.send(Event(name="after"))
        assert database.exists() == (harm is not Path.unlink)


async def test_a_database_with_hard_links_is_refused(app: App, tmp_path: Path) -> None:
    async with app.running():
        pass
    os.link(tmp_path / "durably.db", tmp_path / "link.db")
    for path in ("durably.db", "link.db"):
        with pytest.raises(DatabaseLinkedError, match="2 hard links"):
            await App(tmp_path / path).engine.start()


@pytest.mark.parametrize(("output", "problem"), [({1}, "returned unserializable data"), ("x" * 5_000_000, "bytes")])
async def test_output_that_cannot_be_stored_is_logged(
    app: App, caplog: pytest.LogCaptureFixture, output: Any, problem: str
) -> None:
    @app.function("f", retries=0)
    async def f(ctx: Context) -> Any:
        return {"value": output}

    async with app.running():
        [event_id] = await app.client.send([Event(name="f")])
        await app.ended(event_id)
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert 'function "app-f", run 01' in line.getMessage()
    assert problem in line.getMessage()


async def test_requests_continue_when_the_leader_loses_the_database(app: App, tmp_path: Path) -> None:
    async with app.running():
        other = await SqliteEngine.open(tmp_path / "durably.db", takes_lock=False)
        sent = [asyncio.create_task(app.client.send(Event(name="f", id=str(number)))) for number in range(5)]
        ids = await asyncio.wait_for(asyncio.gather(*sent), 20)
        assert len({event_id for [event_id] in ids}) == 5
        assert await app.engine.list_runs() == []
        await other.close()


async def test_a_send_that_the_leader_did_not_acknowledge_is_repeated_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (App(tmp_path / "durably.db", settings=NO_GRACE) for _ in range(2))
    stored = threading.Event()
    send_events = SqliteEngine.accept_events

    async def store_and_say_nothing(engine: SqliteEngine, events: list[Event], **options: Any) -> Any:
        ids = await send_events(engine, events, **options)
        if not stored.is_set():
            stored.set()
            await asyncio.Event().wait()
        return ids

    monkeypatch.setattr(SqliteEngine, "accept_events", store_and_say_nothing)
    await first.engine.start()
    await second.engine.start()
    sent = asyncio.create_task(second.client.send([Event(name="a"), Event(name="b")]))
    assert await asyncio.to_thread(stored.wait, 20)
    await first.engine.stop()
    ids = await sent
    with closing(sqlite3.connect(tmp_path / "durably.db")) as connection:
        assert [row[0] for row in connection.execute("SELECT id FROM events ORDER BY key")] == ids
    await second.engine.stop()


async def test_unrepeatable_operations_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (App(tmp_path / "durably.db", settings=NO_GRACE) for _ in range(2))
    requested = threading.Event()

    async def hang(engine: SqliteEngine, function_id: str, *, data: Any) -> None:
        requested.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(SqliteEngine, "invoke", hang)
    await first.engine.start()
    await second.engine.start()
    invoked = asyncio.create_task(second.engine.invoke("app-f", {}))
    assert await asyncio.to_thread(requested.wait, 20)
    await first.engine.stop()
    with pytest.raises(TransportError, match="unclear whether the operation was executed"):
        await invoked
    await second.engine.stop()


async def test_flask_functions_run_in_the_app_context(app: App) -> None:
    import flask

    import durably.flask

    @app.function("async")
    async def async_function(ctx: Context) -> str:
        return flask.current_app.name

    @app.function("sync")
    def sync_function(ctx: ContextSync) -> str:
        return flask.current_app.name

    web_app = flask.Flask("shop")
    durably.flask.serve(web_app, app.client, app.functions)
    async with app.engine.running():
        assert output_of(await app.run(Event(name="async"))) == "shop"
        assert output_of(await app.run(Event(name="sync"))) == "shop"


async def test_green_threads_are_refused(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gevent = ModuleType("gevent.monkey")
    gevent.is_module_patched = lambda name: name == "threading"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", gevent)
    with pytest.raises(RuntimeError, match=r"gevent has replaced .*gthread"):
        Embedded(tmp_path / "other.db")
    with pytest.raises(RuntimeError, match="gevent"):
        await app.engine.start()


@pytest.mark.parametrize("is_production", [False, True])
async def test_steps_requests_reach_this_machine_in_development_only(tmp_path: Path, is_production: bool) -> None:
    app = App(tmp_path / "durably.db")
    app.client = Client(app_id="app", engine=app.engine, is_production=is_production)

    @app.function("fetches")
    async def fetches(ctx: Context) -> str:
        return (await ctx.step.fetch("page", ctx.event.data["url"])).body

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, app.running():
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        run = await app.run(Event(name="fetches", data={"url": url}))
    if is_production:
        assert "allow_private_addresses" in output_of(run)["message"]
    else:
        assert output_of(run) == "hi"


async def test_functions_that_are_served_after_the_start_run_too(app: App) -> None:
    @app.function("first")
    async def first(ctx: Context) -> str:
        return "first"

    async with app.running():
        second_client = Client(app_id="second", engine=app.engine)

        @second_client.create_function(fn_id="second", trigger=TriggerEvent(event="second"))
        async def second(ctx: Context) -> str:
            return "second"

        CommHandler(client=second_client, framework="test", functions=[second])
        async with asyncio.timeout(60):
            while True:
                [event_id] = await app.client.send(Event(name="second"))
                if await app.engine.event_runs(event_id):
                    break
        assert output_of(await app.ended(event_id)) == "second"


async def test_a_call_that_the_apps_own_code_cancels_has_failed(app: App) -> None:
    class Cancelling(Middleware):
        async def before_execution(self) -> None:
            raise asyncio.CancelledError

    @app.function("f", retries=0, middleware=[Cancelling])
    async def f(ctx: Context) -> None:
        await ctx.step.run("a", str)

    async with app.running():
        run = await app.run(Event(name="f"))
    assert run.status == "Failed"
    assert "cancelled by the app's own code" in output_of(run)["message"]


@pytest.mark.parametrize(
    ("path", "options", "reason"),
    [
        ("durably.db", {"max_calls": 0}, "max_calls"),
        ("durably.db", {"lease": dt.timedelta(seconds=0.1)}, "lease"),
        (":memory:", {}, "TestEngine"),
    ],
)
def test_wrong_arguments_are_named(path: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Embedded(path, **options)


def test_platforms_without_unix_sockets_or_lasting_processes_are_refused(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    import durably.aws_lambda
    import durably.digital_ocean
    import durably.google_cloud

    platforms: list[tuple[Any, str]] = [
        (durably.digital_ocean, "DigitalOcean Functions"),
        (durably.aws_lambda, "AWS Lambda"),
        (durably.google_cloud, "Google Cloud Functions"),
    ]
    for platform, name in platforms:
        with pytest.raises(FunctionConfigInvalidError, match=name):
            platform.serve(app.client, app.functions)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(OSError, match="durably start"):
        Embedded("durably.db")
