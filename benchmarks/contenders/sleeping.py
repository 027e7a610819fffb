"""Runs that sleep until what their event says, and how late they go on.

With a number as argument, it runs in process, puts so many to sleep for a month, and ends. With an engine's origin
it is an app of that engine: asked for ``runs`` at ``per_second`` it answers with how many seconds late each one was.
"""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import durably
from benchmarks.children import Answerer, serve
from benchmarks.serving import in_process, served

EVENT = "benchmark/sleep"
BATCH = 200
_SENT_PER_SECOND = 250
"""A rate at which any machine can start runs, so that all sleep before the first one wakes."""


class Sleepers:
    def __init__(self) -> None:
        self._late: asyncio.Queue[float] = asyncio.Queue()

    def make_functions(self, client: durably.Client) -> list[durably.Function[Any]]:
        @client.create_function(fn_id="sleeper", trigger=durably.TriggerEvent(event=EVENT))
        async def sleeper(ctx: durably.Context) -> None:
            until = ctx.event.data["until"]
            await ctx.step.sleep_until("nap", dt.datetime.fromtimestamp(until, dt.UTC))
            self._late.put_nowait(time.time() - until)

        return [sleeper]

    async def wake(self, client: durably.Client, runs: int, per_second: float) -> list[float]:
        start = time.time() + 3 + runs / _SENT_PER_SECOND
        await put_to_sleep(client, [round(start + number / per_second, 3) for number in range(runs)])
        if (left := start - time.time()) < 1:
            raise RuntimeError(f"putting the runs to sleep took so long that only {left:.1f} s are left")
        async with asyncio.timeout(left + runs / per_second + 60):
            return [await self._late.get() for _ in range(runs)]


async def put_to_sleep(client: durably.Client, untils: list[float]) -> None:
    for first in range(0, len(untils), BATCH):
        batch = untils[first : first + BATCH]
        await client.send([durably.Event(name=EVENT, data={"until": until}) for until in batch])


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    (argument,) = arguments
    sleepers = Sleepers()
    if argument.isdigit():
        async with in_process(directory, sleepers.make_functions) as (client, settle):
            in_a_month = time.time() + 30 * 86_400
            for _ in range(0, int(argument), BATCH):
                await put_to_sleep(client, [in_a_month] * BATCH)
                await settle()
            yield "asleep", _answer_nothing
    else:
        async with served(argument, sleepers.make_functions) as client:

            async def answer(question: dict[str, Any]) -> list[float]:
                return await sleepers.wake(client, question["runs"], question["per_second"])

            yield "ready", answer


async def _answer_nothing(question: dict[str, Any]) -> None:
    """Putting to sleep was all."""


if __name__ == "__main__":
    serve(open_contender)
