"""More parallel steps than a run may have requests: they share requests, and are executed once each."""

import asyncio
import datetime as dt
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from durably import Context, ContextSync, Middleware, RetryAfterError
from durably.engine.sqlite.call_queue import RUN_REQUESTS
from durably.functions import function

from ..variants import variants
from .conftest import App, durable

Work = Callable[[int], int]


def gathering(count: int, work: Work) -> Callable[..., Any]:
    async def function(ctx: Context) -> int:
        return sum(await asyncio.gather(*(ctx.step.run(f"step {n}", work, n) for n in range(count))))

    return function


def in_group(count: int, work: Work) -> Callable[..., Any]:
    async def function(ctx: Context) -> int:
        return sum(await ctx.group.parallel([lambda n=n: ctx.step.run(f"step {n}", work, n) for n in range(count)]))

    return function


def in_sync_group(count: int, work: Work) -> Callable[..., Any]:
    def function(ctx: ContextSync) -> int:
        return sum(ctx.group.parallel([lambda n=n: ctx.step.run(f"step {n}", work, n) for n in range(count)]))

    return function


KINDS = pytest.mark.parametrize("kind", variants([gathering, in_group, in_sync_group], [in_group]))


@KINDS
async def test_a_thousand_parallel_steps_are_executed_once_each(app: App, kind: Callable[..., Any]) -> None:
    ran: Counter[int] = Counter()

    def work(number: int) -> int:
        ran[number] += 1
        return number

    began = time.process_time()
    assert await app.run(durable(app, kind(1000, work), checkpointing=None)) == sum(range(1000))
    assert set(ran.values()) == {1}
    assert len(app.discoveries) < 20
    assert len(app.calls) < 3 * RUN_REQUESTS
    assert time.process_time() - began < 60, "seconds of CPU"


async def test_later_groups_of_quick_steps_cost_few_calls(app: App) -> None:
    """Each call replays the groups before it."""

    async def groups(ctx: Context) -> int:
        total = 0
        for group in range(4):
            total += sum(await asyncio.gather(*(ctx.step.run(f"{group}:{n}", abs, n) for n in range(80))))
        return total

    function = durable(app, groups, checkpointing=None)
    for _ in range(5):  # On a busy machine quick steps look slow.
        app.calls.clear()
        assert await app.run(function) == 4 * sum(range(80))
        if len(app.calls) < 3 * RUN_REQUESTS:
            break
    else:
        pytest.fail(f"{len(app.calls)} calls")


@KINDS
async def test_each_step_has_its_own_attempts(app: App, kind: Callable[..., Any]) -> None:
    ran: Counter[int] = Counter()

    def work(number: int) -> int:
        ran[number] += 1
        if ran[number] <= number % 3:
            raise ValueError("not yet")
        return number

    assert await app.run(durable(app, kind(100, work), retries=2)) == sum(range(100))
    assert ran == {number: 1 + number % 3 for number in range(100)}


async def test_each_step_that_failed_says_when_to_try_it_again(app: App) -> None:
    """Both share a request, whose headers speak for one."""
    count = 2 * RUN_REQUESTS

    def work(number: int) -> int:
        if number >= count - 2:
            raise RetryAfterError("later", dt.timedelta(hours=number - count + 4))
        return number

    run_id = await app.start(durable(app, gathering(count, work)))
    engine = app.engine.engine
    with engine.watch() as updates:
        while True:
            late = [step for step in await engine.run_steps(run_id) if step.error]
            if len(late) == 2:
                break
            await anext(updates)
    waits = [step.due_at - dt.datetime.now(dt.UTC) for step in late if step.due_at is not None]
    assert sorted(round(wait / dt.timedelta(hours=1)) for wait in waits) == [2, 3]


@pytest.mark.parametrize("kind", variants([gathering, in_sync_group], [in_sync_group]))
async def test_branches_of_several_steps(app: App, kind: Callable[..., Any]) -> None:
    ran: Counter[str] = Counter()

    def work(name: str) -> int:
        ran[name] += 1
        return 1

    async def in_async(ctx: Context) -> int:
        async def branch(number: int) -> int:
            return sum([await ctx.step.run(f"{number}:{step}", work, f"{number}:{step}") for step in range(3)])

        return sum(await asyncio.gather(*(branch(number) for number in range(50))))

    def in_sync(ctx: ContextSync) -> int:
        def branch(number: int) -> int:
            return sum(ctx.step.run(f"{number}:{step}", work, f"{number}:{step}") for step in range(3))

        return sum(ctx.group.parallel([lambda number=number: branch(number) for number in range(50)]))

    assert await app.run(durable(app, in_async if kind is gathering else in_sync)) == 150
    assert (len(ran), set(ran.values())) == (150, {1})


async def test_a_request_of_slow_sync_steps_leaves_some_for_later(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function, "_SHARED_SECONDS", 0.0)
    ran: Counter[int] = Counter()

    def work(number: int) -> int:
        ran[number] += 1
        return number

    assert await app.run(durable(app, in_sync_group(100, work))) == sum(range(100))
    assert set(ran.values()) == {1}
    assert [len(ops) for ops in app.ops() if ops[0][0] == "StepRun"] == [1] * 100


async def test_middleware_sees_one_step_a_call(app: App) -> None:
    """It may keep what concerns the step on itself."""

    class OneAtATime(Middleware):
        step: str | None = None

        async def before_step(self, step: Any) -> None:
            assert self.step is None
            self.step = step.id

    assert await app.run(durable(app, gathering(100, abs), middleware=[OneAtATime])) == sum(range(100))
    assert {status for status, _ in app.answers} == {200, 206}
    assert {len(ops) for ops in app.ops() if ops[0][0] == "StepRun"} == {1}
