"""Durably taking in batches of events that trigger nothing, four batches at once."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

import durably
from benchmarks.children import Answerer, Child, serve
from benchmarks.serving import in_process

from .load import BATCH, event_data, time_runs

AT_ONCE = 4
NAME = "benchmark/none"

Send = Callable[[], Awaitable[None]]


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    """The argument is ``http`` or ``in-process``."""
    async with (_over_http if arguments == ["http"] else _in_process)(directory) as send:

        async def answer(question: dict[str, Any]) -> float:
            return await time_runs(lambda number: send(), question["batches"], AT_ONCE)

        yield "ready", answer


@asynccontextmanager
async def _over_http(directory: Path) -> AsyncIterator[Send]:
    body = json.dumps([{"name": NAME, "data": event_data(number)} for number in range(BATCH)]).encode()
    with Child("benchmarks.engine_process", directory / "engine") as engine:
        url = f"{engine.ready['origin']}/e/benchmark"
        async with aiohttp.ClientSession() as session:

            async def send() -> None:
                async with session.post(url, data=body) as response:
                    response.raise_for_status()
                    await response.read()

            yield send


@asynccontextmanager
async def _in_process(directory: Path) -> AsyncIterator[Send]:
    events = [durably.Event(name=NAME, data=event_data(number)) for number in range(BATCH)]
    async with in_process(directory, lambda client: []) as (client, _):

        async def send() -> None:
            await client.send(events)

        yield send


if __name__ == "__main__":
    serve(open_contender)
