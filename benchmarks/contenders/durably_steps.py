"""A function with any number of steps: seconds per step between its first line and its last."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import durably
from benchmarks.children import Answerer, serve
from benchmarks.serving import in_process, over_http

from .durably_runs import EVENT, charge
from .load import PATIENCE_SECONDS


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    """The argument is ``http`` or ``in-process``."""
    ended: asyncio.Queue[float] = asyncio.Queue()

    def make_functions(client: durably.Client) -> list[durably.Function[Any]]:
        @client.create_function(fn_id="steps", trigger=durably.TriggerEvent(event=EVENT), checkpointing=True)
        async def steps(ctx: durably.Context) -> None:
            count = ctx.event.data["steps"]
            start = time.perf_counter()
            for number in range(count):
                await ctx.step.run(f"charge-{number}", charge, number)
            ended.put_nowait((time.perf_counter() - start) / count)

        return [steps]

    open_engine = over_http if arguments == ["http"] else in_process
    async with open_engine(directory, make_functions) as (client, settle):

        async def answer(question: dict[str, Any]) -> list[float]:
            found = []
            for _ in range(question["runs"]):
                await client.send(durably.Event(name=EVENT, data={"steps": question["steps"]}))
                async with asyncio.timeout(PATIENCE_SECONDS):
                    found.append(await ended.get())
                await settle()
            return found

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
