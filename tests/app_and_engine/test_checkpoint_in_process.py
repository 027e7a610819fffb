"""Checkpoints by another way than HTTP, as with an engine in the app's process: on by default, ops and steps joined."""

import asyncio
import time
from typing import Any

import pytest

from durably import Checkpointing, Context, ContextSync
from durably.engine.core.errors import StaleCallError
from durably.engine.sqlite_engine import SqliteEngine
from durably.errors import CallStaleError
from durably.protocol.call import CheckpointRequest

from .conftest import App, durable


class DirectCheckpoints:
    """Calls the engine on its own event loop, from whichever it is asked."""

    are_default = True
    join_answers = True
    has_lease = False

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self.batches: list[list[str | None]] = []

    def certain_at_arrival(self) -> float:
        return time.monotonic()

    def may_be_stale(self, since: float) -> bool:
        return False

    async def commit(self, request: CheckpointRequest) -> None:
        self.batches.append([step.display_name for step in request.steps])
        done = asyncio.run_coroutine_threadsafe(self._engine.checkpoint(request.run_id, request), self._loop)
        try:
            await asyncio.wrap_future(done)
        except StaleCallError as error:
            raise CallStaleError(str(error)) from None


@pytest.fixture
async def checkpoints(app: App) -> DirectCheckpoints:
    app.checkpoints = DirectCheckpoints(app.engine.engine)
    return app.checkpoints


@pytest.mark.parametrize("is_async", [True, False])
async def test_functions_hand_their_steps_over_unless_told_not_to(
    app: App, checkpoints: DirectCheckpoints, is_async: bool
) -> None:
    async def in_async(ctx: Context) -> int:
        return sum([await ctx.step.run(f"step {number}", lambda number: number, number) for number in range(3)])

    def in_sync(ctx: ContextSync) -> int:
        return sum(ctx.step.run(f"step {number}", lambda number: number, number) for number in range(3))

    handler = in_async if is_async else in_sync
    assert await app.run(durable(app, handler, checkpointing=None)) == 3
    assert (len(app.calls), len(checkpoints.batches)) == (1, 3)
    assert await app.run(durable(app, handler, checkpointing=False, fn_id="off")) == 3
    assert (len(app.calls), len(checkpoints.batches)) == (1 + 4, 3)
    assert app.gate.checkpoints == []


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
