"""A function with groups of parallel steps: seconds of a run."""

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
    ended = asyncio.Event()

    def make_functions(client: durably.Client) -> list[durably.Function[Any]]:
        @client.create_function(fn_id="groups", trigger=durably.TriggerEvent(event=EVENT))
        async def groups(ctx: durably.Context) -> None:
            data = ctx.event.data
            for group in range(data["groups"]):
                await asyncio.gather(
                    *(ctx.step.run(f"charge-{group}-{number}", charge, number) for number in range(data["width"]))
                )
            ended.set()

        return [groups]

    open_engine = over_http if arguments == ["http"] else in_process
    async with open_engine(directory, make_functions) as (client, settle):

        async def answer(question: dict[str, Any]) -> float:
            ended.clear()
            start = time.perf_counter()
            await client.send(durably.Event(name=EVENT, data=question))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await ended.wait()
            await settle()
            return time.perf_counter() - start

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
