"""More parallel steps than a run may have requests: they share requests, and are executed once each."""

import asyncio
import datetime as dt
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from durably import Concurrency, Context, ContextSync, Middleware, NonRetriableError, RetryAfterError
from durably.engine.sqlite.call_queue import RUN_REQUESTS
from durably.execution import Durations
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


@pytest.fixture
def all_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Durations, "are_quick", lambda self, steps: True)


@pytest.fixture(params=variants([None, False, True], [True]))
def checkpointing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The option of a function whose steps are quick, or of one about which nothing is known (``None``)."""
    if request.param is not None:
        monkeypatch.setattr(Durations, "are_quick", lambda self, steps: True)
    return bool(request.param)


@KINDS
async def test_each_step_has_its_own_attempts(app: App, kind: Callable[..., Any], checkpointing: bool) -> None:
    ran: Counter[int] = Counter()

    def work(number: int) -> int:
        ran[number] += 1
        if ran[number] <= number % 3:
            raise ValueError("not yet")
        return number

    function = durable(app, kind(100, work), retries=2, checkpointing=checkpointing)
    ended = await app.run_to_end(function)
    assert (ended.status, bytes(ended.output or b"")) == ("Completed", b"4950")
    assert ran == {number: 1 + number % 3 for number in range(100)}
    steps = await app.engine.engine.run_steps(ended.id)
    assert {int(step.id.removeprefix("step ")): step.attempts for step in steps} == ran


@KINDS
async def test_a_step_that_fails_for_good_fails_in_its_branch(
    app: App, kind: Callable[..., Any], checkpointing: bool
) -> None:
    ran: Counter[int] = Counter()

    def work(number: int) -> int:
        ran[number] += 1
        if number == 7:
            raise NonRetriableError("never")
        return number

    ended = await app.run_to_end(durable(app, kind(20, work), retries=0, checkpointing=checkpointing))
    assert ended.status == "Failed"
    assert b"never" in bytes(ended.output or b"")
    assert ran == dict.fromkeys(range(20), 1)


@KINDS
async def test_quick_steps_share_the_call_that_finds_them(app: App, kind: Callable[..., Any]) -> None:
    ran: Counter[int] = Counter()

    def work(number: int) -> int:
        ran[number] += 1
        return number

    checkpointed, answered = [
        durable(app, kind(100, work), fn_id=f"f-{option}", checkpointing=option) for option in (True, False)
    ]
    for attempt in range(10):  # On a busy machine quick steps look slow.
        calls = []
        for each in (checkpointed, answered):
            app.calls.clear()
            assert await app.run(each) == sum(range(100))
            calls.append(len(app.calls))
        assert set(ran.values()) == {2 * (attempt + 1)}
        if attempt and calls == [2 if kind is in_sync_group else 1, 2]:
            break
    else:
        pytest.fail(f"{calls} calls")


async def test_slow_steps_have_calls_of_their_own(app: App) -> None:
    function = durable(app, in_group(3, lambda number: time.sleep(0.03) or number))
    for _ in range(3):
        app.calls.clear()
        assert await app.run(function) == 3
        assert len(app.calls) == 5


@KINDS
@pytest.mark.usefixtures("all_are_quick")
async def test_a_concurrency_limit_counts_each_step(app: App, kind: Callable[..., Any]) -> None:
    limits = [Concurrency(limit=2)]
    assert await app.run(durable(app, kind(10, abs), concurrency=limits)) == sum(range(10))
    assert len(app.calls) >= 12
    assert {len(ops) for ops in app.ops() if ops[0][0] == "StepRun"} == {1}


@KINDS
@pytest.mark.usefixtures("all_are_quick")
async def test_too_many_steps_at_once_are_not_begun(app: App, kind: Callable[..., Any]) -> None:
    ran: Counter[int] = Counter()

    async def twice(ctx: Context) -> None:
        await asyncio.gather(*(ctx.step.run(f"first {n}", abs, n) for n in range(600)))
        await kind(401, lambda number: ran.update([number]))(ctx)

    handler = kind(1001, lambda number: ran.update([number])) if kind is in_sync_group else twice
    ended = await app.run_to_end(durable(app, handler))
    assert ended.status == "Failed"
    assert b"StepLimitError" in bytes(ended.output or b"")
    assert not ran


@KINDS
@pytest.mark.usefixtures("all_are_quick")
async def test_steps_whose_checkpoint_is_refused_are_answered(app: App, kind: Callable[..., Any]) -> None:
    ran: Counter[int] = Counter()

    def work(number: int) -> int:
        ran[number] += 1
        return number

    app.gate.answer = lambda request: 500
    assert await app.run(durable(app, kind(100, work))) == sum(range(100))
    assert (len(ran), set(ran.values())) == (100, {1})
    assert len(app.calls) == 2


@pytest.mark.usefixtures("all_are_quick")
async def test_a_cancelled_run_begins_no_further_step(app: App) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    async def work(name: str) -> None:
        ran.append(name)
        began.set()
        await cancelled.wait()

    async def function(ctx: Context) -> None:
        await asyncio.gather(*(ctx.step.run(name, work, name) for name in "abc"))
        await ctx.step.run("later", work, "later")

    run_id = await app.start(durable(app, function))
    await began.wait()
    await app.engine.engine.cancel_run(run_id)
    cancelled.set()
    await app.has_answered.wait()
    assert ran == ["a", "b", "c"]


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
