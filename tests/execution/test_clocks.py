"""asyncio's own clocks around steps are refused, with the durable way in the error; around anything else they work."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from durably import Context
from durably.execution import (
    AsyncCall,
    Host,
    Memo,
    Replay,
    Returned,
    StepMemos,
    StepReport,
    StepRequest,
    idle_detection,
)
from durably.protocol.opcodes import Opcode

from .engine import complete, engine_for, fail

Around = Callable[[Awaitable[Any]], Awaitable[Any]]


async def in_timeout(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(60):
        return await awaitable


async def in_timeout_at(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout_at(asyncio.get_running_loop().time() + 60):
        return await awaitable


async def in_timeout_by_hand(awaitable: Awaitable[Any]) -> Any:
    clock = asyncio.timeout(60)
    await clock.__aenter__()
    try:
        return await awaitable
    finally:
        await clock.__aexit__(None, None, None)


async def in_timeout_on_a_stack(awaitable: Awaitable[Any]) -> Any:
    stack = contextlib.AsyncExitStack()
    clock = await stack.enter_async_context(asyncio.timeout(60))
    try:
        return await awaitable
    finally:
        await stack.aclose()
        assert not clock.expired()


async def in_wait_for(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, 60)


async def in_wait(awaitable: Awaitable[Any]) -> Any:
    done, _ = await asyncio.wait([asyncio.ensure_future(awaitable)], timeout=60)
    return done.pop().result()


async def in_as_completed(awaitable: Awaitable[Any]) -> Any:
    for result in asyncio.as_completed([awaitable], timeout=60):
        return await result


CLOCKS: dict[str, Around] = {
    "asyncio.timeout": in_timeout,
    "asyncio.timeout ": in_timeout_at,
    "asyncio.timeout  ": in_timeout_by_hand,
    "asyncio.timeout   ": in_timeout_on_a_stack,
    "asyncio.wait_for": in_wait_for,
    "asyncio.wait(timeout=)": in_wait,
    "asyncio.as_completed(timeout=)": in_as_completed,
}


@pytest.fixture(params=CLOCKS)
def clock(request: pytest.FixtureRequest) -> tuple[str, Around]:
    name = request.param
    if name == "asyncio.wait_for" and in_wait_for_is_a_timeout():
        return "asyncio.", CLOCKS[name]
    return name.strip(), CLOCKS[name]


def in_wait_for_is_a_timeout() -> bool:
    """Since Python 3.12 ``wait_for`` is written with ``asyncio.timeout``."""
    return hasattr(asyncio.tasks, "timeouts")


def assert_refused(error: dict[str, Any], name: str, *step_ids: str) -> None:
    assert error["code"] == "clock_unsupported"
    assert error["message"].startswith(name)
    assert "ctx.group.timeout(id, duration)" in error["message"]
    for step_id in step_ids:
        assert f'"{step_id}"' in error["message"]


async def nested(ctx: Context) -> Any:
    async def inner() -> Any:
        return await ctx.step.run("deep", str)

    return await asyncio.gather(inner(), ctx.step.sleep("nap", 1000))


async def in_generator(ctx: Context) -> Any:
    async def numbers() -> Any:
        yield await ctx.step.run("deep", str)

    async for number in numbers():
        return number


AWAITABLES: dict[str, Callable[[Context], Awaitable[Any]]] = {
    "a run": lambda ctx: ctx.step.run("deep", str),
    "a sleep": lambda ctx: ctx.step.sleep("deep", 1000),
    "branches": nested,
    "an async generator": in_generator,
}


@pytest.mark.parametrize("awaitable", AWAITABLES)
async def test_clocks_around_steps_are_refused_before_anything_runs(clock: tuple[str, Around], awaitable: str) -> None:
    name, around = clock

    async def function(ctx: Context) -> Any:
        return await around(AWAITABLES[awaitable](ctx))

    run = await engine_for(function).run()
    assert len(run.answers) == 1
    assert run.answers[0].no_retry
    assert_refused(run.output, name, "deep")


async def test_clocks_in_one_of_several_branches(clock: tuple[str, Around]) -> None:
    name, around = clock

    async def function(ctx: Context) -> Any:
        return await asyncio.gather(ctx.step.run("free", str), around(ctx.step.run("clocked", str)))

    assert_refused(await fail(function), name, "clocked")


async def test_clocks_around_other_things_work(clock: tuple[str, Around]) -> None:
    _, around = clock

    async def function(ctx: Context) -> Any:
        slept = await around(asyncio.sleep(0.001, "slept"))
        both = await asyncio.gather(around(asyncio.to_thread(str, "thread")), ctx.step.run("step", str, "step"))
        return [slept, *both, await around(asyncio.sleep(0, "again"))]

    assert await complete(function) == ["slept", "thread", "step", "again"]


async def test_clocks_around_slow_io_beside_steps(clock: tuple[str, Around], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that do not wait for a slow branch any longer have nothing to do with its clock."""
    monkeypatch.setattr(idle_detection, "_STALL_SECONDS", 0.02)
    _, around = clock
    answers: list[asyncio.Future[str]] = []

    async def function(ctx: Context) -> Any:
        answers.append(asyncio.get_running_loop().create_future())
        if len(answers) > 1:
            answers[-1].set_result("answer")
        return await asyncio.gather(around(answers[-1]), ctx.step.run("step", str, "step"))

    assert await complete(function) == ["answer", "step"]


async def test_clocks_without_a_time_and_clocks_inside_handlers_are_fine() -> None:
    async def handler() -> str:
        async with asyncio.timeout(60):
            return await asyncio.wait_for(asyncio.sleep(0, "handled"), 60)

    async def function(ctx: Context) -> Any:
        async with asyncio.timeout(None):
            return await asyncio.wait_for(ctx.step.run("step", handler), None)

    assert await complete(function) == "handled"


async def test_clock_of_an_ended_block_is_ignored() -> None:
    async def function(ctx: Context) -> Any:
        async with asyncio.timeout(60) as clock:
            await asyncio.sleep(0)
        assert clock.when()
        async with asyncio.timeout(60) as clock:
            clock.reschedule(None)
            return await ctx.step.run("step", str, "step")

    assert await complete(function) == "step"


class Checkpoints:
    """Stores steps, so that the call continues."""

    is_over = False

    async def take(self, report: StepReport) -> Memo:
        return Memo(report.output)

    async def take_all(self, reports: Sequence[StepReport]) -> list[Memo]:
        return [Memo(report.output) for report in reports]


@pytest.mark.parametrize("is_around", [False, True])
async def test_clock_in_a_handler_does_not_delay_later_steps(is_around: bool) -> None:
    """A step is executed at once unless a clock may run around it. Otherwise the call looks for the clock first."""
    call = AsyncCall(Replay(StepMemos(), host=Host(checkpointer=Checkpoints())))

    async def handler() -> str:
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        return "done"

    async def function() -> None:
        if is_around:
            await handler()
        for number in range(2):
            await call.step(StepRequest(str(number), Opcode.STEP_RUN, handler=handler))

    assert await call.run(function) == Returned(None)
    assert (call._idle_detector is not None) == is_around
