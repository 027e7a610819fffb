"""A step that an async function makes and does not await fails the run, and ordinary asyncio does not."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import durably
from durably import Context, ParallelMode, StepError

from .engine import engine_for, fail, last, named

if TYPE_CHECKING:
    pass


@pytest.fixture(autouse=True)
def python_warns_too() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


async def nothing() -> None: ...


FORGOTTEN: dict[str, tuple[str, Callable[[Context], Any]]] = {
    "run": ('step "pay"', lambda ctx: ctx.step.run("pay", nothing)),
    "sleep": ('step "nap"', lambda ctx: ctx.step.sleep("nap", 60_000)),
    "wait_for_event": ('step "wait"', lambda ctx: ctx.step.wait_for_event("wait", event="e", timeout=60_000)),
    "send_event": ('step "send"', lambda ctx: ctx.step.send_event("send", durably.Event(name="e"))),
    "fetch": ('step "fetch"', lambda ctx: ctx.step.fetch("fetch", "http://127.0.0.1:1")),
    "group.parallel": ("group.parallel", lambda ctx: ctx.group.parallel([lambda: ctx.step.run("pay", nothing)])),
}


@pytest.mark.parametrize("kind", FORGOTTEN)
async def test_a_step_without_await_fails_the_run(kind: str) -> None:
    name, make = FORGOTTEN[kind]

    async def function(ctx: Context) -> str:
        make(ctx)
        return "done"

    run = await engine_for(function).run()
    assert run.status == "Failed"
    assert (run.output["name"], run.output["code"]) == ("StepNotAwaitedError", "step_not_awaited")
    assert run.output["message"].startswith(f"{name} was created but not awaited")
    assert len(run.answers) == 1, "another attempt cannot help"


async def test_it_fails_before_the_next_step_runs() -> None:
    ran: list[str] = []

    async def function(ctx: Context) -> None:
        await ctx.step.run("first", ran.append, "first")
        ctx.step.run("pay", ran.append, "pay")  # type: ignore[unused-coroutine]
        await ctx.step.run("mail", ran.append, "mail")

    error = await fail(function)
    assert 'step "pay" was created but not awaited' in error["message"]
    line = test_it_fails_before_the_next_step_runs.__code__.co_firstlineno + 5
    assert f"(at {__file__}:{line})" in error["message"]
    assert ran == ["first"]


# -- code that is not a mistake


async def lost_race(ctx: Context) -> Any:
    tasks = [asyncio.create_task(ctx.step.run(name, str, name)) for name in ("a", "b")]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return len(done)


async def cancelled_before_it_began(ctx: Context) -> Any:
    task = asyncio.create_task(ctx.step.run("a", nothing))
    task.cancel()
    return 1


async def wrapped_and_cancelled_before_it_began(ctx: Context) -> Any:
    async def wrapper(step: Awaitable[Any]) -> None:
        await step

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(wrapper(ctx.step.run("a", nothing)))
            raise KeyError
    except* KeyError:
        pass
    return 1


async def steps_made_first_and_awaited_later(ctx: Context) -> Any:
    first, second = ctx.step.run("a", nothing), ctx.step.run("b", nothing)
    await second
    await first
    return 1


async def error_in_a_gather_that_is_caught(ctx: Context) -> Any:
    try:
        await asyncio.gather(ctx.step.run("a", float, "x"), ctx.step.run("b", nothing))
    except StepError:
        return 1


async def durable_timeout(ctx: Context) -> Any:
    async with ctx.group.timeout("deadline", 60_000):
        await ctx.step.run("a", nothing)
    return 1


async def racing_groups(ctx: Context) -> Any:
    groups = [
        ctx.group.parallel([lambda name=name: ctx.step.run(name, nothing)], ParallelMode.RACE)  # type: ignore[misc]
        for name in ("a", "b")
    ]
    await asyncio.wait([asyncio.ensure_future(group) for group in groups], return_when=asyncio.FIRST_COMPLETED)
    return 1


async def as_completed(ctx: Context) -> Any:
    for step in asyncio.as_completed([ctx.step.run(name, nothing) for name in ("a", "b")]):
        await step
        break
    return 1


async def given_to_a_method_that_awaits_it(ctx: Context) -> Any:
    async def wait_for_all(steps: list[Awaitable[Any]]) -> None:
        for step in steps:
            await step

    await wait_for_all([ctx.step.run("a", nothing), ctx.step.run("b", nothing)])
    return 1


# -- steps in tasks that are not awaited


async def left_gather(ctx: Context) -> Any:
    asyncio.gather(ctx.step.run("a", nothing), ctx.step.run("b", nothing))
    return 1


async def left_task(ctx: Context) -> Any:
    asyncio.create_task(ctx.step.run("a", nothing))  # noqa: RUF006
    asyncio.create_task(ctx.step.run("b", nothing))  # noqa: RUF006
    return 1


async def left_branch(ctx: Context) -> Any:
    async def branch(step_id: str) -> None:
        await asyncio.gather(ctx.step.run(step_id, nothing))

    asyncio.create_task(branch("a"))  # noqa: RUF006
    asyncio.create_task(branch("b"))  # noqa: RUF006
    for _ in range(3):
        await asyncio.sleep(0)
    return 1


async def left_after_other_steps(ctx: Context) -> Any:
    asyncio.create_task(ctx.step.sleep("a", 60_000))  # noqa: RUF006
    asyncio.create_task(ctx.step.sleep("b", 60_000))  # noqa: RUF006
    await ctx.step.run("first", nothing)
    return await ctx.step.run("second", int, 1)


async def left_group(ctx: Context) -> Any:
    asyncio.create_task(ctx.group.parallel([lambda: ctx.step.run("a", nothing), lambda: ctx.step.run("b", nothing)]))  # noqa: RUF006
    return await ctx.step.run("first", int, 1)


@pytest.mark.parametrize(
    "function", [left_gather, left_task, left_branch, left_after_other_steps, left_group], ids=lambda f: f.__name__
)
async def test_steps_in_unawaited_tasks_are_named_when_the_function_returns(
    function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = await engine_for(function).run(pick=named("first", "second"))
    assert (run.status, run.output) == ("Completed", 1)
    (warning,) = [record.getMessage() for record in caplog.records if "nothing awaited" in record.getMessage()]
    assert f'function "app-{function.__name__}", run 01RUN' in warning
    assert 'nothing awaited: "a", "b".' in warning


async def race_with_code_that_is_no_step(ctx: Context) -> Any:
    tasks = {asyncio.create_task(ctx.step.run("a", nothing)), asyncio.create_task(nothing())}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return 1


async def race_that_is_over_when_it_is_awaited(ctx: Context) -> Any:
    tasks = [asyncio.create_task(ctx.step.run(name, nothing)) for name in ("a", "b")]
    await ctx.step.run("c", nothing)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return 1


async def race_of_gathers(ctx: Context) -> Any:
    gathers = [asyncio.gather(ctx.step.run(f"{name}1", nothing), ctx.step.run(f"{name}2", nothing)) for name in "ab"]
    await asyncio.wait(gathers, return_when=asyncio.FIRST_COMPLETED)
    return 1


async def race_of_shields(ctx: Context) -> Any:
    shields = [asyncio.shield(ctx.step.run(name, nothing)) for name in "ab"]
    await asyncio.wait(shields, return_when=asyncio.FIRST_COMPLETED)
    return 1


async def race_in_a_helper(ctx: Context) -> Any:
    async def first_of(*steps: Any) -> None:
        await asyncio.wait([asyncio.create_task(step) for step in steps], return_when=asyncio.FIRST_COMPLETED)

    async def branch(name: str) -> None:
        await first_of(ctx.step.run(f"{name}1", nothing), ctx.step.run(f"{name}2", nothing))

    await asyncio.gather(branch("a"), branch("b"))
    return 1


async def race_with_a_task_of_branches(ctx: Context) -> Any:
    async def branch(name: str) -> None:
        await asyncio.gather(ctx.step.run(f"{name}1", nothing), ctx.step.run(f"{name}2", nothing))

    await asyncio.wait([asyncio.create_task(branch(name)) for name in "ab"], return_when=asyncio.FIRST_COMPLETED)
    return 1


async def with_a_callback(ctx: Context) -> Any:
    task = asyncio.create_task(ctx.step.sleep("a", 60_000))
    task.add_done_callback(print)
    await ctx.step.run("b", nothing)
    return 1


async def error_that_is_caught_from_a_task_group(ctx: Context) -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.step.run("a", float, "x"))
            group.create_task(ctx.step.sleep("b", 60_000))
    except* StepError:
        pass
    return 1


async def timeout_that_expires(ctx: Context) -> Any:
    try:
        async with ctx.group.timeout("limit", 60_000):
            await asyncio.gather(ctx.step.sleep("a", 120_000), ctx.step.sleep("b", 120_000))
    except TimeoutError:
        pass
    return 1


async def cancelled_after_a_while(ctx: Context) -> Any:
    task = asyncio.create_task(ctx.step.sleep("a", 60_000))
    await ctx.step.run("b", nothing)
    task.cancel()
    return 1


async def awaited_again_and_again(ctx: Context) -> Any:
    pending = {asyncio.create_task(ctx.step.run(name, nothing)) for name in "abc"}
    while len(pending) > 1:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    return 1


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("pick", [named("limit", "c", "a", "a1"), last], ids=["first", "last"])
@pytest.mark.parametrize(
    "function",
    [
        lost_race,
        cancelled_before_it_began,
        wrapped_and_cancelled_before_it_began,
        steps_made_first_and_awaited_later,
        given_to_a_method_that_awaits_it,
        error_in_a_gather_that_is_caught,
        durable_timeout,
        racing_groups,
        as_completed,
        race_with_code_that_is_no_step,
        race_that_is_over_when_it_is_awaited,
        race_of_gathers,
        race_of_shields,
        race_in_a_helper,
        race_with_a_task_of_branches,
        with_a_callback,
        error_that_is_caught_from_a_task_group,
        timeout_that_expires,
        cancelled_after_a_while,
        awaited_again_and_again,
    ],
    ids=lambda function: function.__name__,
)
async def test_ordinary_asyncio_is_allowed_and_steps_that_lost_a_race_are_not_named(
    function: Any, pick: Any, blocking: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run = await engine_for(function, blocking=blocking, max_attempts=1).run(pick=pick)
    assert (run.status, run.output) == ("Completed", 1)
    assert "nothing awaited" not in caplog.text


async def test_functions_own_error_comes_before_that_of_an_unawaited_step() -> None:
    async def function(ctx: Context) -> None:
        steps = [ctx.step.run("a", nothing)]
        raise KeyError(len(steps))

    assert (await fail(function))["name"] == "KeyError"
