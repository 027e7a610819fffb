"""Disks that are full, connections that are stale, answers that nothing can be made of."""

import asyncio
import logging
import socket
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from durably.engine.model import calls, http_connections
from durably.engine.model.events import check_event
from durably.engine.model.http_connections import open_socket
from durably.engine.model.runs import RunStatus
from durably.engine.sqlite.engine import SqliteEngine
from durably.engine.sqlite.transactions import event_routing
from durably.engine.sqlite.transactions.transaction import Transaction
from durably.protocol.call import CallRequest
from durably.protocol.engine_errors import DatabaseCorruptError, DatabaseUnavailableError
from durably.protocol.events import Event

from ..conftest import QUICK, ended, only_run, opened, output, run_to_end, send
from ..small_app import SmallApp, Steps


async def limit_pages(engine: SqliteEngine, pages: int) -> None:
    """Let the database grow so far and no further, as on a full disk."""

    def unit(transaction: Transaction) -> None:
        connection = transaction.store._connection
        (now,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {now + pages}")

    await engine._transactions.transact(unit)


class Heard(logging.Handler):
    """Waits for a line of the log."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.event, self.loop = text, asyncio.Event(), asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.loop.call_soon_threadsafe(self.event.set)


@pytest.fixture
async def trying_again() -> AsyncIterator[asyncio.Event]:
    """Set once the engine says that it tries something again."""
    heard = Heard("trying again")
    logging.getLogger("durably.engine").addHandler(heard)
    yield heard.event
    logging.getLogger("durably.engine").removeHandler(heard)


async def test_a_full_disk_loses_no_answer(engine: SqliteEngine, app: SmallApp, trying_again: asyncio.Event) -> None:
    big = "x" * 300_000

    @app.function("big")
    def large(steps: Steps) -> object:
        return len(steps.run("big", lambda: big))

    await engine.sync_app(app.sync_request())
    app.gate.clear()
    run_id = await only_run(engine, await send(engine, "big"))
    await app.wait_for_calls(1)
    await limit_pages(engine, 5)
    with pytest.raises(DatabaseUnavailableError, match="full"):
        await engine.send_events([Event(name="lost", data={"big": big})])
    app.gate.set()
    await trying_again.wait()
    await limit_pages(engine, 100_000)
    assert output(await ended(engine, run_id)) == len(big)
    assert app.executions["big"] == 1


async def test_unawaited_write_is_retried_too(engine: SqliteEngine, trying_again: asyncio.Event) -> None:
    attempts = 0

    def unit(transaction: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise sqlite3.OperationalError("disk I/O error")
        event_routing.send(transaction, [check_event(Event(name="stored at last"), 1000)], None)

    engine._transactions.transact_in_background(unit)
    await trying_again.wait()
    await asyncio.gather(*engine._transactions._retrying)
    assert attempts == 3
    assert [event.event.name for event in await engine.list_events()] == ["stored at last"]


async def test_a_connection_that_the_app_was_closing_costs_no_attempt(engine: SqliteEngine, app: SmallApp) -> None:
    """A server may close an idle connection just as it is used again."""

    @app.function("two", retries=0)
    def two(steps: Steps) -> object:
        steps.run("a", lambda: 1)
        return "fine"

    def hang_up(call: object) -> web.StreamResponse | None:
        if len(app.calls) == 2:
            transport = app.requests[-1].transport
            assert transport is app.requests[0].transport
            assert transport is not None
            transport.close()
        return None

    app.before = hang_up
    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "two")
    assert output(run) == "fine"
    assert [call.ctx.attempt for call in app.calls] == [0, 0, 0]


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_step_that_brings_its_app_down_uses_up_its_attempts(
    engine: SqliteEngine, app: SmallApp, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time, over a connection that was kept, it looks as if the app had closed that, unless it had long been
    used; never again."""
    if is_late:
        monkeypatch.setattr(calls, "_CLOSING_SECONDS", 0.0)

    @app.function("fatal", retries=1)
    def fatal(steps: Steps) -> object:
        steps.run("a", lambda: 1)
        return "never"

    def go_down(call: CallRequest) -> web.StreamResponse | None:
        if call.steps:
            transport = app.requests[-1].transport
            assert transport is not None
            transport.close()
        return None

    app.before = go_down
    await engine.sync_app(app.sync_request())
    run = await run_to_end(engine, "fatal")
    assert output(run)["name"] == "CallLostError"
    assert [call.ctx.attempt for call in app.calls] == ([0, 0, 1] if is_late else [0, 0, 0, 1])


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the platform has no such option")
async def test_a_host_that_vanishes_is_noticed(path: Path, app: SmallApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the connection itself, long before the call may have taken too long."""
    sockets: list[socket.socket] = []
    monkeypatch.setattr(
        http_connections, "open_socket", lambda address: sockets.append(open_socket(address)) or sockets[-1]
    )

    @app.function("simple")
    def simple(steps: Steps) -> object:
        option = sockets[0].getsockopt
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        return [option(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *(option(socket.IPPROTO_TCP, name) for name in names)]

    async with opened(path) as engine:
        await engine.sync_app(app.sync_request())
        assert output(await run_to_end(engine, "simple")) == [1, 30, 10, 3]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000 + b"]" * 200_000,
        b'[{"id":"\\ud800","op":"StepRun"}]',
        b'[{"id":"a","op":"StepRun","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
    ],
    ids=["deep", "surrogate", "deep output"],
)
@pytest.mark.parametrize("status", [200, 206])
async def test_odd_answers_end_the_run_and_nothing_else(
    engine: SqliteEngine, app: SmallApp, body: bytes, status: int
) -> None:
    @app.function("odd", retries=0)
    def odd(steps: Steps) -> object:
        return "never"

    @app.function("fine")
    def fine(steps: Steps) -> object:
        return "fine"

    def answer(call: Any) -> web.Response | None:
        headers = {"x-inngest-sdk": "py:v1"}
        return web.Response(status=status, body=body, headers=headers) if call.event.name == "odd" else None

    app.before = answer
    await engine.sync_app(app.sync_request())
    # With the retries of a misbehaving app used up, whatever it said is its last word.
    odd_run = await run_to_end(engine, "odd")
    assert odd_run.status.has_ended
    assert (await run_to_end(engine, "fine")).status == RunStatus.COMPLETED


async def test_an_engine_is_opened_again_after_it_failed_to_open(path: Path) -> None:
    """A failure gives back the lock."""
    await asyncio.to_thread(path.write_bytes, b"rubbish" * 1000)
    for _ in range(2):
        with pytest.raises(DatabaseCorruptError):
            await SqliteEngine.open(path, QUICK)
    await asyncio.to_thread(path.unlink)
    async with opened(path) as engine:
        assert await engine.list_events() == []
