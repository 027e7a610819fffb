"""Clients that wait for the results of orders, each with a request that is held, made again when it comes back empty.

A question with the app's ``origin`` and the ``orders`` opens them and is answered at once. One without is answered when
all of them are: how late each result came, in seconds after the order had been shipped, and how many requests it took.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.children import Answerer, serve

_WAIT = 60


@asynccontextmanager
async def open_polls(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    polls: list[asyncio.Task[tuple[float, int]]] = []
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def answer(question: dict[str, Any]) -> dict[str, Any] | None:
            if "orders" in question:
                polls.extend(
                    asyncio.create_task(_poll(session, f"{question['origin']}/orders/order-{id}/result"))
                    for id in question["orders"]
                )
                return None
            done = await asyncio.gather(*polls)
            return {"late": [late for late, _ in done], "requests": sum(requests for _, requests in done)}

        yield "ready", answer


async def _poll(session: aiohttp.ClientSession, url: str) -> tuple[float, int]:
    requests = 0
    while True:
        requests += 1
        async with session.get(url, params={"wait": _WAIT}) as response:
            if response.status == 200:
                return time.time() - (await response.json())["result"], requests
            if response.status != 202:
                raise RuntimeError(f"{url}: {response.status}: {await response.text()}")


if __name__ == "__main__":
    serve(open_polls)
