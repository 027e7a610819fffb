"""Groups of parallel steps on Restate: seconds of an invocation."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import restate

from benchmarks.children import Answerer, serve
from benchmarks.restate import restate_server

from .durably_runs import charge

service = restate.Service("FanOut")


@service.handler()
async def groups(ctx: restate.Context, shape: dict[str, int]) -> None:
    for group in range(shape["groups"]):
        if shape["width"] == 1:
            await ctx.run_typed(f"charge-{group}", charge, number=group)
            continue
        numbers = range(shape["width"])
        await restate.gather(*(ctx.run_typed(f"charge-{group}-{number}", charge, number=number) for number in numbers))


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async with restate_server(directory, service) as url, aiohttp.ClientSession() as session:

        async def answer(question: dict[str, Any]) -> float:
            start = time.perf_counter()
            async with session.post(f"{url}/groups", json=question) as response:
                assert response.status == 200, await response.text()
            return time.perf_counter() - start

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
