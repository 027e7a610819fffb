"""The floor of that: the same two hops and one commit, with nothing around them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import fastapi

from benchmarks.calls import PATH
from benchmarks.children import Answerer, Child, serve
from benchmarks.web import serve_app

from .load import EVENT_BODY, PATIENCE_SECONDS


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    app = fastapi.FastAPI()
    begun: asyncio.Queue[float] = asyncio.Queue()

    @app.post(PATH)
    async def first_line(request: fastapi.Request) -> fastapi.Response:
        await request.body()
        begun.put_nowait(time.perf_counter())
        return fastapi.Response(b"null", 200, {"content-type": "application/json"})

    async with serve_app(app) as url:
        with Child("benchmarks.contenders.latency_relay", directory / "relay", url + PATH) as relay:

            async def send_one(session: aiohttp.ClientSession) -> float:
                start = time.perf_counter()
                async with session.post(relay.ready, data=EVENT_BODY) as response:
                    assert response.status == 200
                    await response.read()
                async with asyncio.timeout(PATIENCE_SECONDS):
                    seconds = await begun.get() - start
                await asyncio.to_thread(relay.ask)
                return seconds

            async def answer(question: dict[str, Any]) -> list[float]:
                async with aiohttp.ClientSession() as session:
                    return [await send_one(session) for _ in range(question["times"])]

            yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
