"""Time from sending an event to the first line of its function, one event at a time, on an idle engine."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

import durably
from benchmarks.children import Answerer, serve
from benchmarks.serving import over_http

from .load import EVENT_BODY, PATIENCE_SECONDS


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    begun: asyncio.Queue[float] = asyncio.Queue()

    def make_functions(client: durably.Client) -> list[durably.Function[Any]]:
        @client.create_function(fn_id="first-line", trigger=durably.TriggerEvent(event="benchmark/run"))
        async def first_line(ctx: durably.Context) -> None:
            begun.put_nowait(time.perf_counter())

        return [first_line]

    async with over_http(directory, make_functions) as (client, settle):
        url = f"{client.event_api_origin}/e/benchmark"

        async def send_one(session: aiohttp.ClientSession) -> float:
            start = time.perf_counter()
            async with session.post(url, data=EVENT_BODY) as response:
                response.raise_for_status()
                await response.read()
            async with asyncio.timeout(PATIENCE_SECONDS):
                seconds = await begun.get() - start
            await settle()
            return seconds

        async def answer(question: dict[str, Any]) -> list[float]:
            async with aiohttp.ClientSession() as session:
                return [await send_one(session) for _ in range(question["times"])]

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
