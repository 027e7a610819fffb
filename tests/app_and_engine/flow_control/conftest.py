"""A real app, called over real HTTP, and the embedded engine on a database on disk; only time is virtual.

Time stands still until a test lets it pass, so that tests of hours take milliseconds and race with nothing.
"""

import asyncio
import contextlib
import datetime as dt
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from durably import Client, Context, Function, TriggerEvent
from durably.comm import CommHandler, CommRequest
from durably.engine.model.runs import Run, RunStatus
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.engine import SqliteEngine
from durably.functions import config
from durably.protocol.engine_errors import ConfigInvalidError
from durably.protocol.events import Event
from durably.protocol.sync import decode_sync
from durably.testing.link import VirtualClock

START = dt.datetime(2026, 3, 2, 12, 0, tzinfo=dt.UTC)
"""A Monday, at noon."""


@pytest.fixture(autouse=True)
def _unchecked_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are created without a check of options, so that the engine refuses them."""
    monkeypatch.setattr(config, "check_config", lambda config: None)


class Clock(VirtualClock):
    def set(self, now: int) -> None:
        """Let time have passed, whatever is under way; timers notice when they are looked at next."""
        self._now = now


class Limit:
    """Blocks steps until the test releases them. ``inside`` has the blocked ones."""

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.inside: list[Any] = []
        self.most_inside = 0
        self._changed = asyncio.Condition()
        self._may_leave: dict[Any, asyncio.Event] = {}
        self.is_open = False

    async def pass_through(self, who: Any) -> Any:
        self.entered.append(who)
        self.inside.append(who)
        self.most_inside = max(self.most_inside, len(self.inside))
        event = self._may_leave.setdefault(who, asyncio.Event())
        async with self._changed:
            self._changed.notify_all()
        if not self.is_open:
            await event.wait()
        self.inside.remove(who)
        return who

    async def wait_for(self, *who: Any) -> None:
        """Wait until these, and no others, are inside."""
        async with self._changed:
            await self._changed.wait_for(lambda: sorted(self.inside) == sorted(who))

    def let_go(self, who: Any) -> None:
        self._may_leave[who].set()

    def open(self) -> None:
        self.is_open = True
        for event in self._may_leave.values():
            event.set()


class World:
    """``calls`` counts the calls to the app."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.client = Client(app_id="shop", is_production=False)
        self.clock = Clock(round(START.timestamp() * 1000))
        self.limit = Limit()
        self.calls = 0
        self.url = ""
        self._functions: dict[str, Function[Any]] = {}
        self._engine: SqliteEngine | None = None
        self._handler: CommHandler | None = None

    # the app

    def function(self, fn_id: str, **options: Any) -> Callable[[Any], Function[Any]]:
        options.setdefault("trigger", TriggerEvent(event=fn_id))
        options.setdefault("retries", 0)

        def decorate(handler: Any) -> Function[Any]:
            function = self.client.create_function(fn_id=fn_id, **options)(handler)
            self._functions[fn_id] = function
            return function

        return decorate

    def recording(self, fn_id: str, seen: list[Any], **options: Any) -> Function[Any]:
        """A function that notes the ``n`` of its events, and returns it."""

        @self.function(fn_id, **options)
        async def record(ctx: Context) -> Any:
            seen.append(
                [event.data.get("n") for event in ctx.events] if len(ctx.events) > 1 else ctx.event.data.get("n")
            )
            return seen[-1]

        return record

    def gated(self, fn_id: str, **options: Any) -> Function[Any]:
        """A function of one step, which waits at the limit as the ``n`` of its event."""

        @self.function(fn_id, **options)
        async def wait_at_gate(ctx: Context) -> Any:
            return await ctx.step.run("gate", lambda: self.limit.pass_through(ctx.event.data["n"]))

        return wait_at_gate

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert self._handler is not None
        self.calls += 1
        comm_request = CommRequest(
            body=await request.read(),
            headers=dict(request.headers),
            query_params=dict(request.query),
            raw_request=request,
            request_url=self.url,
        )
        response = await self._handler.handle(request.method, comm_request)
        return web.Response(status=response.status_code, body=response.body, headers=response.headers)

    # the engine

    @property
    def engine(self) -> SqliteEngine:
        assert self._engine is not None, "the engine is not open"
        return self._engine

    async def open(self, **settings: Any) -> None:
        """Open the engine and sync the functions there are."""
        chosen: dict[str, Any] = {
            "clock": self.clock,
            "backoff": lambda attempt, jitter: dt.timedelta(seconds=10),
            "unreached_backoff": lambda failures, jitter: dt.timedelta(seconds=1),
            "close_grace": dt.timedelta(0),
        } | settings
        self._engine = await SqliteEngine.open(self.path, EngineSettings(**chosen))
        await self.sync()

    async def sync(self) -> None:
        functions = list(self._functions.values())
        self._handler = CommHandler(client=self.client, framework="test", functions=functions)
        configs = [config for function in functions for config in function.configs(self.url)]
        body = msgspec.json.encode({"url": self.url, "appName": "shop", "functions": configs})
        await self.engine.sync_app(decode_sync(body))

    async def close(self) -> None:
        if self._engine is not None:
            self.limit.open()
            await self._engine.close()
            self._engine = None

    async def restart(self, *, after: dt.timedelta = dt.timedelta(0)) -> None:
        """Close the engine as if it had died, and open it again after a time, in which nothing could happen."""
        await self.engine.close()
        self._engine = None
        self.clock = Clock(self.clock.now() + after // dt.timedelta(milliseconds=1))
        self.limit = Limit() if not self.limit.is_open else self.limit
        await self.open()

    async def refused(self) -> str:
        """The message with which a sync of the functions is refused."""
        with pytest.raises(ConfigInvalidError) as refused:
            await self.sync() if self._engine else await self.open()
        return refused.value.message

    # what happens

    async def send(self, name: str, **data: Any) -> str:
        (event_id,) = await self.engine.send_events([Event(name=name, data=data, ts=self.clock.now())])
        return event_id

    async def rest(self) -> None:
        """Wait until nothing is under way."""
        await self.clock.rest()

    async def let_pass(self, **span: float) -> None:
        """Let time go on, from one thing that is due to the next."""
        until = self.clock.now() + dt.timedelta(**span) // dt.timedelta(milliseconds=1)
        while await self.clock.advance(until):
            pass

    async def let_pass_while_busy(self, **span: float) -> None:
        """The same while calls are under way, for as long as nothing is due."""
        self.clock.set(self.clock.now() + dt.timedelta(**span) // dt.timedelta(milliseconds=1))

    def rows(self, *tables: str) -> int:
        """The number of rows of the tables."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return sum(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)

    def plan(self, statement: str) -> str:
        """SQLite's query plan of a statement."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"))

    async def runs(self, fn_id: str) -> list[Run]:
        """Oldest first."""
        return list(reversed(await self.engine.list_runs(function_id=f"shop-{fn_id}", limit=500)))

    async def statuses(self, fn_id: str) -> list[RunStatus]:
        return [run.status for run in await self.runs(fn_id)]

    async def outputs(self, fn_id: str) -> list[Any]:
        return [None if run.output is None else msgspec.json.decode(run.output) for run in await self.runs(fn_id)]

    def seconds(self, timestamp: dt.datetime | None) -> float:
        """Since the test began."""
        assert timestamp is not None
        return (timestamp - START).total_seconds()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for name in os.environ:
        if name.startswith(("DURABLY_", "INNGEST_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    world = World(tmp_path / "engine.db")
    site_app = web.Application(client_max_size=64 * 1024 * 1024)
    site_app.router.add_route("*", "/api/inngest", world.handle)
    runner = web.AppRunner(site_app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    world.url = f"http://127.0.0.1:{runner.addresses[0][1]}/api/inngest"
    try:
        yield world
    finally:
        await world.close()
        await runner.cleanup()
