"""Checkpoints without HTTP: on by default, and joined with the op that follows them."""

import asyncio
import concurrent.futures
import time
from pathlib import Path
from typing import Any

import pytest

from durably import Checkpointing, Client, Context, ContextSync, Embedded, Event, Function, TriggerEvent
from durably.comm import CommHandler
from durably.engine.sqlite.engine import SqliteEngine
from durably.errors import CallStaleError
from durably.io.http_client import IO
from durably.protocol.call import CheckpointRequest
from durably.protocol.engine_errors import StaleCallError

from .conftest import App, durable


class DirectCheckpoints:
    """Calls the engine on the engine's event loop."""

    are_default = True
    join_answers = True
    has_lease = False
    are_possible = True

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self.batches: list[list[str | None]] = []

    def certain_at_arrival(self) -> float:
        return time.monotonic()

    def may_be_stale(self, since: float) -> bool:
        return False

    async def commit(self, request: CheckpointRequest, io: IO) -> None:
        self.batches.append([step.display_name for step in request.steps])
        done = asyncio.run_coroutine_threadsafe(self._engine.checkpoint(request.run_id, request), self._loop)
        try:
            await io.resolve(_result_of(done))
        except StaleCallError as error:
            raise CallStaleError(str(error)) from None


async def _result_of(done: concurrent.futures.Future[None]) -> None:
    await asyncio.wrap_future(done)


@pytest.fixture
async def checkpoints(app: App) -> DirectCheckpoints:
    app.checkpoints = DirectCheckpoints(app.engine.engine)
    return app.checkpoints


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(("checkpointing", "calls"), [(None, 1), (False, 4)])
async def test_functions_send_checkpoints_unless_the_option_is_off(
    tmp_path: Path, is_async: bool, checkpointing: bool | None, calls: int
) -> None:
    client = Client(app_id="app", is_production=False, engine=Embedded(tmp_path / "durably.db"))
    called: list[int] = []

    async def in_async(ctx: Context) -> int:
        called.append(1)
        return sum([await ctx.step.run(f"step {number}", lambda number: number, number) for number in range(3)])

    def in_sync(ctx: ContextSync) -> int:
        called.append(1)
        return sum(ctx.step.run(f"step {number}", lambda number: number, number) for number in range(3))

    make = client.create_function(fn_id="f", trigger=TriggerEvent(event="go"), checkpointing=checkpointing)
    function: Function[Any] = make(in_async) if is_async else make(in_sync)
    CommHandler(client=client, framework="test", functions=[function])
    async with client.engine.running():
        [event_id] = await client.send(Event(name="go"))
        [run] = await client.engine.event_runs(event_id)
        run = await client.engine.wait_for_run(run.id)
    assert bytes(run.output or b"") == b"3"
    assert len(called) == calls


async def test_steps_and_the_op_that_follows_them_make_one_answer(app: App, checkpoints: DirectCheckpoints) -> None:
    async def function(ctx: Context) -> Any:
        await ctx.step.run("a", lambda: 1)
        await ctx.step.run("b", lambda: 1)
        await ctx.step.sleep("nap", 1)
        await ctx.step.run("c", lambda: 1)
        await asyncio.gather(*(ctx.step.run(name, lambda: 1) for name in ("d", "e")))
        return "done"

    assert await app.run(durable(app, function, checkpointing=Checkpointing(buffered_steps=10))) == "done"
    assert checkpoints.batches == []
    assert app.ops()[:2] == [
        [("StepRun", "a"), ("StepRun", "b"), ("Sleep", "nap")],
        [("StepRun", "c"), ("StepPlanned", "d"), ("StepPlanned", "e")],
    ]


async def test_an_error_follows_the_steps_before_it(app: App, checkpoints: DirectCheckpoints) -> None:
    ran: list[str] = []

    async def function(ctx: Context) -> str:
        await ctx.step.run("a", ran.append, "a")
        await ctx.step.run("b", fails_once)
        return "done"

    def fails_once() -> None:
        ran.append("b")
        if ran.count("b") == 1:
            raise ValueError("not yet")

    assert await app.run(durable(app, function, checkpointing=Checkpointing(buffered_steps=10), retries=1)) == "done"
    assert ran == ["a", "b", "b"]
    assert app.ops()[0] == [("StepRun", "a"), ("StepError", "b")]
