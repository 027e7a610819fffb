"""Clients of a web app, each with a connection that is kept, which asks again as soon as it is answered.

A question has the app's ``origin``, how many ``clients`` there are, and the ``orders`` that they start, or describe if
``is_start`` is false. The answer: the seconds that each request took.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.children import Answerer, serve


@asynccontextmanager
async def open_load(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def answer(question: dict[str, Any]) -> list[float]:
            ids, seconds = iter(question["orders"]), list[float]()

            async def ask() -> None:
                for id in ids:
                    begun = time.perf_counter()
                    await _ask(session, question["origin"], id, is_start=question["is_start"])
                    seconds.append(time.perf_counter() - begun)

            async with asyncio.TaskGroup() as clients:
                for _ in range(question["clients"]):
                    clients.create_task(ask())
            return seconds

        yield "ready", answer


async def _ask(session: aiohttp.ClientSession, origin: str, order_id: str, *, is_start: bool) -> None:
    if is_start:
        order = {"order_id": order_id, "amount": 4200, "lines": ["a chair", "a table"]}
        asking = session.post(f"{origin}/orders", json=order)
    else:
        asking = session.get(f"{origin}/orders/order-{order_id}")
    async with asking as response:
        if response.status != (202 if is_start else 200):
            raise RuntimeError(f"{response.method} {response.url}: {response.status}: {await response.text()}")
        await response.read()


if __name__ == "__main__":
    serve(open_load)
