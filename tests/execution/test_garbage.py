"""A call that has ended is freed at once, with its memos: nothing of it waits for the garbage collector.

Not so what a step's handler raised, or a ``finally`` block of the teardown: such errors hold the frames that
called them. Nor asyncio's own ``TaskGroup`` before Python 3.13.
"""

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from durably.execution import Assignment, AsyncCall, Host, Replay, StepInfo, StepMemos, StepReport, StepRequest
from durably.protocol.opcodes import Opcode, hash_step_id

Step = Callable[[str], Awaitable[Any]]


class NoHooks:
    async def unmemoized(self) -> None: ...

    async def before_step(self, step: StepInfo) -> None: ...

    async def after_step(self, report: StepReport) -> None: ...


class Payload:
    """An object that a function references. Unlike a dict, it supports weak references."""


async def executes(step: Step) -> None:
    await step("memoized")
    await step("new")


async def plans_several(step: Step) -> None:
    await step("memoized")
    await asyncio.gather(step("a"), step("b"))


async def races(step: Step) -> None:
    tasks = {asyncio.create_task(step_of(step, name)) for name in "ab"}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def cleans_up(step: Step) -> None:
    try:
        await step("new")
    finally:
        await asyncio.sleep(0)


async def fails(step: Step) -> None:
    await step("memoized")
    raise ValueError("the function's own")


async def returns(step: Step) -> None:
    await step("memoized")


async def step_of(step: Step, name: str) -> Any:
    return await step(name)


def objects_of_calls() -> Counter[str]:
    """The numbers of objects that the package has in memory, by class."""
    classes = map(type, gc.get_objects())
    return Counter(kind.__qualname__ for kind in classes if str(kind.__module__).startswith("durably.execution"))


PROGRAMS = [
    executes,
    plans_several,
    races,
    cleans_up,
    fails,
    returns,
]


@pytest.mark.parametrize("disable_immediate", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_call_leaves_nothing_to_the_garbage_collector(
    program: Callable[[Step], Awaitable[None]], disable_immediate: bool
) -> None:
    watched: list[weakref.ref[Any]] = []

    async def call() -> None:
        memos = {hash_step_id("memoized"): msgspec.Raw(b'{"data":1}')}
        assignment = Assignment(disable_immediate=disable_immediate)
        replay = Replay(StepMemos(memos), assignment, Host(hooks=NoHooks()))
        running = AsyncCall(replay)

        def step(step_id: str) -> Awaitable[Any]:
            return running.step(StepRequest(step_id, Opcode.STEP_RUN, handler=dict))

        async def function() -> None:
            payload = Payload()
            watched.append(weakref.ref(payload))
            await program(step)

        watched.append(weakref.ref(running))
        await running.run(function)

    gc.collect()
    gc.disable()
    try:
        before = objects_of_calls()
        await call()
        await asyncio.sleep(0)  # the last of the tasks' callbacks
        assert [ref() for ref in watched] == [None, None]
        assert objects_of_calls() - before == Counter()
    finally:
        gc.enable()
