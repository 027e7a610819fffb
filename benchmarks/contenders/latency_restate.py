"""From an invocation that Restate accepts to the first line of the function."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import restate

from benchmarks.children import Answerer, serve
from benchmarks.restate import restate_server

from .load import PATIENCE_SECONDS

service = restate.Service("Latency")
begun: asyncio.Queue[float] = asyncio.Queue()


@service.handler()
async def first_line(ctx: restate.Context, number: int) -> None:
    begun.put_nowait(time.perf_counter())


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async with restate_server(directory, service) as url, aiohttp.ClientSession() as session:

        async def send_one() -> float:
            start = time.perf_counter()
            async with session.post(f"{url}/first_line/send", json=1) as response:
                assert response.status == 202, await response.text()
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await begun.get() - start

        async def answer(question: dict[str, Any]) -> list[float]:
            return [await send_one() for _ in range(question["times"])]

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
