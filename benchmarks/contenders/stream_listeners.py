"""Subscribers of the engine's realtime route, as bare connections that parse no more than the time of a message."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from benchmarks.children import Answerer, serve

_AT = re.compile(rb'"at":\s*([0-9.]+)')


class Subscriber(asyncio.Protocol):
    def __init__(self, request: bytes, latencies: list[float]) -> None:
        self._request, self._latencies = request, latencies

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        for at in _AT.findall(data):
            self._latencies.append(now - float(at))


@asynccontextmanager
async def open_listeners(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    latencies: list[float] = []
    open_: list[Subscriber] = []

    async def answer(question: dict[str, Any]) -> Any:
        if "run_ids" in question:
            open_.extend(await _connect(question["origin"], question["run_ids"], latencies))
        elif "clear" in question:
            latencies.clear()
        elif "read" in question:
            return latencies[:]
        else:
            for subscriber in open_:
                subscriber.transport.abort()
            open_.clear()
        return None

    yield "ready", answer


async def _connect(origin: str, run_ids: list[str], latencies: list[float]) -> list[Subscriber]:
    url, tokens = urlsplit(origin), dict[str, str]()
    async with aiohttp.ClientSession(origin) as session:
        for run_id in dict.fromkeys(run_ids):
            topics = [{"channel": run_id, "name": "words", "kind": "run"}]
            async with session.post("/v1/realtime/token", json=topics) as response:
                tokens[run_id] = (await response.json())["jwt"]
    subscribers = []
    for run_id in run_ids:
        request = f"GET /v1/realtime/sse?token={tokens[run_id]} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n"
        subscriber = Subscriber(request.encode(), latencies)
        await asyncio.get_running_loop().create_connection(
            partial(_same, subscriber), url.hostname or "", url.port or 0
        )
        subscribers.append(subscriber)
    return subscribers


def _same(subscriber: Subscriber) -> Subscriber:
    return subscriber


if __name__ == "__main__":
    serve(open_listeners)
