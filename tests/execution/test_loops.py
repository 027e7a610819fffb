"""Event loops of other kinds: uvloop, task factories that others installed, eager tasks, and many runs on one loop."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from durably import Context
from durably.io.background_loop import BackgroundLoop

from . import test_asyncio as plain
from . import test_clocks as clocks
from . import test_groups as groups
from .engine import complete, engine_for

uvloop = pytest.importorskip("uvloop")

SCENARIOS: dict[str, Callable[[], Awaitable[None]]] = {
    scenario.__name__: scenario
    for scenario in (
        plain.test_gather_finds_all_then_runs_each_in_a_call_of_its_own,
        plain.test_task_group_raises_the_group_and_cancels_the_rest,
        plain.test_ops_are_in_the_order_in_which_steps_were_made,
        plain.test_shielded_steps_complete,
        plain.test_asyncio_primitives_work_between_branches,
        plain.test_real_io_in_branches_is_waited_for,
        plain.test_async_generators_and_context_managers,
        plain.test_context_variables_are_kept_in_branches,
        plain.test_cancelling_a_parked_task_from_the_loop_itself,
        plain.test_tasks_without_the_runs_context_are_known_once_they_call_a_step,
        plain.test_tasks_of_a_handler_are_its_own,
        groups.test_a_timeout_in_a_group_that_waits_races_nevertheless,
        groups.test_a_timeout_around_branches_cancels_them_all,
    )
}
"""Tests of plain asyncio that are repeated on other loops."""


async def every_clock_is_refused() -> None:
    for name in clocks.CLOCKS:
        reported = "asyncio." if name == "asyncio.wait_for" else name.strip()
        await clocks.test_clocks_around_steps_are_refused_before_anything_runs((reported, clocks.CLOCKS[name]), "a run")


SCENARIOS["every_clock_is_refused"] = every_clock_is_refused


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_functions_run_on_uvloop(scenario: str) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(SCENARIOS[scenario]())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python has eager tasks from 3.12 on")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_functions_run_with_eager_tasks(scenario: str) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        await SCENARIOS[scenario]()

    asyncio.run(main())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_task_factory_that_was_there_before(scenario: str) -> None:
    """It is kept, and makes every task."""
    made = []

    class Task(asyncio.Task[Any]):
        pass

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        made.append(Task(coro, loop=loop, **kwargs))
        return made[-1]

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        await SCENARIOS[scenario]()
        assert isinstance(asyncio.ensure_future(asyncio.sleep(0)), Task)

    asyncio.run(main())
    assert len(made) > 3


async def test_a_task_factory_that_comes_later_and_forgets_ours() -> None:
    async def function(ctx: Context) -> Any:
        asyncio.get_running_loop().set_task_factory(None)
        return await asyncio.gather(*(ctx.step.run(name, str, name) for name in "ab"))

    assert await complete(function) == ["a", "b"]


async def test_tasks_on_another_threads_loop_outlive_the_run() -> None:
    """The other loop runs functions too, so that it also tracks tasks."""
    other = BackgroundLoop("other")
    may_end, left = asyncio.Event(), []

    async def warm_up(ctx: Context) -> None: ...

    async def work() -> str:
        await may_end.wait()
        return "done"

    async def function(ctx: Context) -> None:
        left.append(other.submit(work()))

    other.run(complete(warm_up))
    assert hasattr(other.loop.get_task_factory(), "tracks_durably")
    await complete(function)
    other.loop.call_soon_threadsafe(may_end.set)
    assert await asyncio.wrap_future(left[0]) == "done"


async def test_runs_on_one_loop_that_share_a_semaphore() -> None:
    limit = asyncio.Semaphore(2)
    running: list[int] = []

    async def function(ctx: Context) -> Any:
        async def handler(value: int) -> int:
            async with limit:
                running.append(value)
                assert len(running) <= 2
                await asyncio.sleep(0.001)
                running.remove(value)
                return value

        async def branch(value: int) -> int:
            async with limit:
                await asyncio.sleep(0)
            return await ctx.step.run(f"branch {value}", handler, value)

        first = await ctx.step.run("first", handler, 0)
        async with limit:
            second = await ctx.step.run("second", int, 1)
        return [first, second, *await asyncio.gather(branch(2), branch(3))]

    runs = await asyncio.gather(*(engine_for(function).run() for _ in range(20)))
    assert [run.output for run in runs] == [[0, 1, 2, 3]] * 20


async def test_run_started_within_another_is_independent() -> None:
    """An engine in the same process may call the app in the context of the run that sent the event."""

    async def inner(ctx: Context) -> Any:
        return await asyncio.gather(ctx.step.run("a", str, "a"), ctx.step.run("b", str, "b"))

    runs = []

    async def call_inner() -> Any:
        runs.append(await engine_for(inner).run())
        return runs[-1].output

    async def outer(ctx: Context) -> Any:
        by_handler = await ctx.step.run("handler", call_inner)
        in_group = await ctx.group.parallel([call_inner])
        return [by_handler, in_group, await ctx.step.run("after", str, "after")]

    assert await complete(outer) == [["a", "b"], [["a", "b"]], "after"]
    assert all(op["opts"] == {"parallelMode": "race"} for run in runs for op in run.answers[0].ops)
