"""Runs that publish messages, and listeners: in this process, or as connections to the engine's own route.

The first argument is ``follow`` or ``sse``.
"""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import durably
from benchmarks.children import Answerer, Child, cpu_seconds_of, serve
from benchmarks.serving import in_process, served
from durably.streams import follow

from .load import PATIENCE_SECONDS

PAUSE_SECONDS = 0.05
WARM_UP_SECONDS = 2.0
_AT_ONCE = 50


class Talk:
    """Runs that publish until ``is_over``, and quick ones that are counted."""

    def __init__(self) -> None:
        self.is_over = asyncio.Event()
        self.published = self.quick = 0

    def make_functions(self, client: durably.Client) -> list[durably.Function[Any]]:
        @client.create_function(fn_id="talk", trigger=[])
        async def talk(ctx: durably.Context) -> None:
            async def speak() -> None:
                await asyncio.sleep(hash(ctx.run_id) % 1000 * PAUSE_SECONDS / 1000)
                while not self.is_over.is_set():
                    durably.publish("words", {"at": time.time(), "number": self.published})
                    self.published += 1
                    await asyncio.sleep(PAUSE_SECONDS)

            await ctx.step.run("speak", speak)

        @client.create_function(fn_id="quick", trigger=durably.TriggerEvent(event="quick"))
        async def quick(ctx: durably.Context) -> None:
            await ctx.step.run("step", lambda: None)
            self.quick += 1

        return [talk, quick]


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    talk = Talk()
    async with AsyncExitStack() as stack:
        listeners: Child | None = None
        engine: Child | None = None
        if arguments == ["sse"]:
            engine = stack.enter_context(Child("benchmarks.engine_process", directory / "engine", "3600", "5000"))
            listeners = stack.enter_context(Child("benchmarks.contenders.stream_listeners", directory / "listeners"))
            client = await stack.enter_async_context(served(engine.ready["origin"], talk.make_functions))
        else:
            client, _ = await stack.enter_async_context(in_process(directory, talk.make_functions))

        async def answer(question: dict[str, Any]) -> dict[str, Any]:
            return await measure(talk, client, engine, listeners, **question)

        yield "ready", answer


async def measure(
    talk: Talk,
    client: durably.Client,
    engine: Child | None,
    outside: Child | None,
    *,
    runs: int,
    listeners: int,
    seconds: float,
) -> dict[str, Any]:
    talk.is_over.clear()
    handles = [client.run(run_id) for run_id in await _start_runs(client, runs)]
    latencies: list[float] = []
    tasks: list[asyncio.Task[None]] = []
    silent = set(range(listeners))
    wanted = [handles[number % runs].id for number in range(listeners)]
    if outside is None:
        tasks = [asyncio.create_task(_listen(client, *each, silent, latencies)) for each in enumerate(wanted)]
        while silent:
            await asyncio.sleep(PAUSE_SECONDS)
    elif listeners:
        await asyncio.to_thread(outside.ask, origin=client.api_origin, run_ids=wanted)
    await asyncio.sleep(WARM_UP_SECONDS)
    latencies.clear()
    if outside is not None and listeners:
        await asyncio.to_thread(outside.ask, clear=True)
    published, cpu, began = talk.published, _cpu(engine), time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed, cpu = time.perf_counter() - began, _cpu(engine) - cpu
    if outside is not None and listeners:
        latencies = await asyncio.to_thread(outside.ask, read=True)
    found = list(latencies)
    published = talk.published - published
    rss = _rss(engine)
    quick = await _count_quick(talk, client, seconds)
    talk.is_over.set()
    for task in tasks:
        task.cancel()
    if outside is not None and listeners:
        await asyncio.to_thread(outside.ask, close=True)
    for handle in handles:
        await handle.result(timeout=dt.timedelta(seconds=PATIENCE_SECONDS))
    return {
        "published": published / elapsed,
        "delivered": len(found) / elapsed,
        "p50": median(found) if found else 0.0,
        "p99": quantiles(found, n=100)[98] if len(found) > 1 else 0.0,
        "cpu": cpu / elapsed,
        "rss": rss,
        "quick": quick,
    }


async def _start_runs(client: durably.Client, count: int) -> list[str]:
    from durably.engine_client import execute
    from durably.io.http_client import AsyncIO

    receipts = [await execute(client, "invoke", {"function_id": "benchmark-talk"}, AsyncIO()) for _ in range(count)]
    return [receipt.run_id for receipt in receipts]


async def _listen(client: durably.Client, number: int, run_id: str, silent: set[int], latencies: list[float]) -> None:
    async for message in follow(client, run_id, topics=["words"]):
        silent.discard(number)
        latencies.append(time.time() - message.data["at"])


async def _count_quick(talk: Talk, client: durably.Client, seconds: float) -> float:
    """Quick runs per second, with some at once."""
    began, before = time.perf_counter(), talk.quick
    sent = before
    while time.perf_counter() - began < seconds:
        if sent - talk.quick < _AT_ONCE:
            sent += len(await client.send([durably.Event(name="quick") for _ in range(_AT_ONCE)]))
        else:
            await asyncio.sleep(0.002)
    return (talk.quick - before) / (time.perf_counter() - began)


def _cpu(engine: Child | None) -> float:
    """CPU seconds of this process and the engine's."""
    return time.process_time() + (0.0 if engine is None else cpu_seconds_of(engine.pid))


def _rss(engine: Child | None) -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 if engine is None else engine.rss()


if __name__ == "__main__":
    serve(open_contender)
