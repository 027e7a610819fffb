"""Functions with limits for a storm.

Their steps return when they ran. A step that was committed ran while its call held the slots of the function, so those
of a function never overlap beyond its limit.
"""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import durably
from durably import Checkpointing, Concurrency, Context, Function, NonRetriableError, Singleton, TriggerEvent

from ....crash.app_process import NAP, RETRIES, Diary, ask

LIMIT = 2
"""Maximum concurrent calls: all calls of ``crew``, and calls of ``errand`` of one kind."""
LIMITED = {"crew": LIMIT, "errand": LIMIT, "watch": 1}
"""Functions, and the maximum number of their concurrent steps."""
KINDS = 2
_MEETING_SECONDS = 60
_WORK_SECONDS = (0.05, 1.2)


def kind_of(function: str, number: int) -> int:
    """The value of the key of a function's limit for an event."""
    return number % KINDS if function == "errand" else 0


def define_limited(client: durably.Client, diary: Diary) -> list[Function[Any]]:
    async def work(ctx: Context, step: str) -> dict[str, Any]:
        began, token = time.time_ns(), diary.execute(ctx, step)
        if "meeting" in ctx.event.data and step == "first":
            await _meet(ctx.run_id, Path(str(ctx.event.data["meeting"])), LIMITED[ctx.event.name.partition("/")[2]])
        await asyncio.sleep(random.choices(_WORK_SECONDS, (9, 1))[0])
        return {"token": token, "began": began, "ended": time.time_ns()}

    async def take_steps(ctx: Context) -> None:
        for step in ("first", "second"):
            await ctx.step.run(step, work, ctx, step)
        await ctx.step.sleep("nap", NAP)
        await ctx.group.parallel(tuple(lambda name=name: ctx.step.run(name, work, ctx, name) for name in ("a", "b")))  # type: ignore[misc]

    @client.create_function(
        fn_id="crew",
        trigger=TriggerEvent(event="crash/crew"),
        retries=RETRIES,
        concurrency=[Concurrency(limit=LIMIT)],
        checkpointing=Checkpointing(buffered_steps=2),
    )
    async def crew(ctx: Context) -> None:
        await take_steps(ctx)

    @client.create_function(
        fn_id="errand",
        trigger=TriggerEvent(event="crash/errand"),
        retries=RETRIES,
        concurrency=[Concurrency(limit=LIMIT, key=f"event.data.number % {KINDS}")],
    )
    async def errand(ctx: Context) -> None:
        await take_steps(ctx)
        await ask(ctx)
        await ctx.step.run("last", work, ctx, "last")

    @client.create_function(
        fn_id="watch",
        trigger=TriggerEvent(event="crash/watch"),
        retries=RETRIES,
        singleton=Singleton(mode="skip"),
    )
    async def watch(ctx: Context) -> None:
        """A run that starts while another one is on watch is skipped. Its steps run one after another."""
        await ctx.step.run("first", work, ctx, "first")
        await ctx.step.sleep("nap", NAP)
        await ctx.step.run("last", work, ctx, "last")

    return [crew, errand, watch]


async def _meet(run_id: str, place: Path, limit: int) -> None:
    """Wait until the maximum number of runs is here. Fails if a slot was not freed."""
    (place / run_id).touch()
    try:
        async with asyncio.timeout(_MEETING_SECONDS):
            while _count_files(place) < limit:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise NonRetriableError(f"fewer than {limit} runs got a slot within {_MEETING_SECONDS} s") from None


def _count_files(place: Path) -> int:
    return len([*place.iterdir()])
