"""Very many runs on a virtual clock: each takes a step, sleeps for an hour, and takes another. What has ended is kept
for a quarter of an hour, so that as many runs exist at one time as at another."""

import datetime as dt
import gc
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import durably
from benchmarks.children import Answerer, serve
from durably.testing import TestEngine

from .durably_runs import EVENT, charge

BATCH = 100
_BETWEEN = dt.timedelta(minutes=30)


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    tempfile.tempdir = str(directory)  # where test engines have their files
    client = durably.Client(app_id="benchmark", is_production=False)
    ended = 0

    @client.create_function(fn_id="sleeper", trigger=durably.TriggerEvent(event=EVENT))
    async def sleeper(ctx: durably.Context) -> None:
        nonlocal ended
        number = ctx.event.data["number"]
        await ctx.step.run("before", charge, number)
        await ctx.step.sleep("nap", dt.timedelta(hours=1))
        await ctx.step.run("after", charge, number)
        ended += 1

    async with TestEngine(client, [sleeper], retention=dt.timedelta(minutes=15)) as engine:

        async def answer(question: dict[str, Any]) -> int:
            """The number of ended runs, once ``count`` more have been started."""
            for _ in range(0, question["runs"], BATCH):
                await engine.send([durably.Event(name=EVENT, data={"number": number}) for number in range(BATCH)])
                await engine.advance(_BETWEEN)
            gc.collect()
            return ended

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
