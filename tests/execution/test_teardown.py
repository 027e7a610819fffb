"""Tasks of a function when its call ends: they are cancelled, clean up, and leave nothing behind."""

import asyncio
import gc
import logging
import tracemalloc
from typing import Any

import pytest

from durably import Context
from durably.execution import idle_detection

from .engine import Run, complete, engine_for
from .test_asyncio import explode


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_detection, "_GRACE_SECONDS", 0.02)


async def test_cleaning_up_is_awaited() -> None:
    closed = []

    class Connection:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: object) -> None:
            await asyncio.sleep(0.005)
            closed.append("connection")

    async def function(ctx: Context) -> None:
        async def branch(name: str) -> None:
            async with Connection():
                await ctx.step.run(name, str)

        await asyncio.gather(branch("a"), branch("b"))

    engine = engine_for(function)
    answer = await engine.call(Run({"name": "e", "data": {}, "id": "1", "ts": 1}))
    assert len(answer.ops) == 2
    assert closed == ["connection"] * 2


async def test_errors_on_the_way_out_change_nothing_and_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def function(ctx: Context) -> Any:
        async def branch(name: str) -> Any:
            try:
                return await ctx.step.run(name, str, name)
            except asyncio.CancelledError:
                explode()

        return await asyncio.gather(branch("a"), branch("b"))

    assert await complete(function) == ["a", "b"]
    gc.collect()
    assert caplog.records == []


async def test_tasks_made_on_the_way_out_are_cancelled_too() -> None:
    made = []

    async def function(ctx: Context) -> Any:
        try:
            return await ctx.step.run("a", str, "a")
        except asyncio.CancelledError:
            made.append(asyncio.create_task(ctx.step.sleep("late", 60_000)))
            await made[-1]

    assert await complete(function) == "a"
    assert [task.cancelled() for task in made] == [True]


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("waits_for", ["steps", "ever"])
async def test_a_task_that_swallows_its_cancellation_is_left_behind(
    waits_for: str, caplog: pytest.LogCaptureFixture
) -> None:
    is_over = False

    async def stubborn(ctx: Context) -> None:
        while not is_over:
            try:
                await (ctx.step.sleep("nap", 1000) if waits_for == "steps" else asyncio.Event().wait())
            except:  # noqa: E722
                continue

    async def function(ctx: Context) -> Any:
        asyncio.create_task(stubborn(ctx))  # noqa: RUF006
        return await ctx.step.run("a", str, "a")

    engine = engine_for(function)
    run = Run({"name": "e", "data": {}, "id": "1", "ts": 1})
    answer = await engine.call(run)
    [left] = asyncio.all_tasks() - {asyncio.current_task()}
    is_over = True
    left.cancel()
    await asyncio.wait([left])
    assert ("StepPlanned" if waits_for == "steps" else "StepRun", "a") in answer.found()
    assert "swallows asyncio.CancelledError" in caplog.text


async def test_a_request_cancelled_mid_call_cancels_the_handler() -> None:
    """As servers do when the other side hangs up."""
    log = []
    started = asyncio.Event()

    async def handler() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            log.append("handler")

    async def function(ctx: Context) -> None:
        try:
            await ctx.step.run("it", handler)
        finally:
            log.append("function")

    engine = engine_for(function)
    request = asyncio.ensure_future(engine.call(Run({"name": "e", "data": {}, "id": "1", "ts": 1})))
    await started.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert log == ["handler", "function"]


async def test_a_request_cancelled_while_its_branches_wait_cancels_them() -> None:
    log = []
    waiting = asyncio.Event()

    async def function(ctx: Context) -> None:
        async def branch() -> None:
            waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                log.append("branch")

        await asyncio.gather(branch(), branch())

    request = asyncio.ensure_future(engine_for(function).run())
    await waiting.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert log == ["branch", "branch"]


async def test_no_callback_is_left_on_futures_of_a_function() -> None:
    """A function may wait for something that outlives its call, such as an application's own future."""
    forever = asyncio.get_running_loop().create_future()

    async def function(ctx: Context) -> Any:
        async def branch() -> None:
            await asyncio.wait([forever])

        asyncio.create_task(branch())  # noqa: RUF006
        await asyncio.sleep(0.001)

    await complete(function)
    assert not forever._callbacks


@pytest.mark.parametrize("parks", ["one step", "branches", "a timeout"])
async def test_calls_that_park_leave_nothing(parks: str, caplog: pytest.LogCaptureFixture) -> None:
    """Memory and objects after thousands of calls that were torn down are those before."""

    async def function(ctx: Context) -> None:
        await ctx.step.run("done", str)
        if parks == "one step":
            await ctx.step.sleep("nap", 1000)
        elif parks == "branches":
            async with asyncio.TaskGroup() as group:
                for name in "abc":
                    group.create_task(ctx.step.run(name, str))
        else:
            async with ctx.group.timeout("deadline", 1000):
                await ctx.step.run("a", str)

    engine = engine_for(function)
    run = Run({"name": "e", "data": {}, "id": "1", "ts": 1})
    await engine.drive(run, steps=1)

    async def park(times: int) -> tuple[int, int]:
        for _ in range(times):
            await engine.call(run)
            run.bodies.clear()
        gc.collect()
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

    caplog.set_level(logging.DEBUG, "asyncio")
    await park(50)
    tracemalloc.start()
    try:
        for _ in range(3):  # Threads of earlier tests may use memory too, but not each time.
            before = await park(50)
            after = await park(400)
            growth = after[0] - before[0], after[1] - before[1]
            if growth[0] < 100 and growth[1] < 50_000:
                break
    finally:
        tracemalloc.stop()
    assert growth[0] < 100
    assert growth[1] < 50_000
    assert caplog.records == []
    assert len(asyncio.all_tasks()) == 1
