"""``client.send`` inside a function, outside of its steps: the events are sent again at each replay."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from durably import Client, Context, ContextSync, Event, Function, Middleware, TriggerEvent
from durably.testing import TestEngine

Log = Callable[[], list[str]]
GO = TriggerEvent(event="go")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "outside of a step" in record.getMessage()
    ]


@pytest.fixture
def client() -> Client:
    return Client(app_id="shop", is_production=False)


async def run(client: Client, *functions: Function[Any], times: int = 1) -> None:
    async with TestEngine(client, list(functions)) as engine:
        for _ in range(times):
            run = await engine.send(Event(name="go"))
            await run.wait()
            run.assert_completed()


@pytest.mark.parametrize("kind", ["async", "sync", "thread"])
async def test_a_function_is_warned_once(kind: str, client: Client, log: Log) -> None:
    async def place(ctx: Context) -> None:
        await client.send(Event(name="placed"))
        await ctx.step.run("charge", lambda: 1)
        await asyncio.create_task(client.send(Event(name="charged")))  # type: ignore[arg-type]

    def place_sync(ctx: ContextSync) -> None:
        client.send_sync(Event(name="placed"))
        ctx.step.run("charge", lambda: 1)

    async def place_in_thread(ctx: Context) -> None:
        await asyncio.to_thread(client.send_sync, Event(name="placed"))

    handler: Any = {"async": place, "sync": place_sync, "thread": place_in_thread}[kind]
    await run(client, client.create_function(fn_id="place", trigger=GO)(handler), times=2)
    [warning] = log()
    assert 'function "shop-place" sends events by client.send outside of a step' in warning
    assert "ctx.step.send_event" in warning


class Auditor(Middleware):
    def __init__(self, client: Client, raw_request: object) -> None:
        self.sender = client

    async def before_execution(self) -> None:
        await self.sender.send(Event(name="audited"), skip_middleware=True)

    after_execution = before_execution
    before_response = before_execution


async def test_steps_handlers_and_middleware_are_not_warned(log: Log) -> None:
    client = Client(app_id="shop", is_production=False, middleware=[Auditor])

    async def send() -> None:
        await client.send(Event(name="placed"))
        await asyncio.create_task(client.send(Event(name="placed")))  # type: ignore[arg-type]

    def send_sync() -> None:
        client.send_sync(Event(name="placed"))

    @client.create_function(fn_id="place", trigger=GO)
    async def place(ctx: Context) -> None:
        await ctx.step.send_event("placed", Event(name="placed"))
        await ctx.step.run("async", send)
        await ctx.step.run("sync", send_sync)
        await ctx.group.parallel((lambda: ctx.step.run("a", send), lambda: ctx.step.run("b", send_sync)))

    @client.create_function(fn_id="place-sync", trigger=GO)
    def place_sync(ctx: ContextSync) -> None:
        ctx.step.send_event("placed", Event(name="placed"))
        ctx.step.run("sync", send_sync)
        ctx.group.parallel((lambda: ctx.step.run("a", send_sync), lambda: ctx.step.run("b", send_sync)))

    await run(client, place)
    await run(client, place_sync)
    async with TestEngine(client, [place]):
        await client.send(Event(name="from a view"))
    assert log() == []
