"""Runs that wait for an event by ``async.data.id == event.data.id``, in process: how long after an event is sent the
one run that it wakes goes on. The argument is how many wait."""

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import durably
from benchmarks.children import Answerer, serve
from benchmarks.serving import in_process

from .load import PATIENCE_SECONDS

BATCH = 500


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    waiting = int(arguments[0])
    woken: asyncio.Queue[tuple[int, float]] = asyncio.Queue()

    def make_functions(client: durably.Client) -> list[durably.Function[Any]]:
        @client.create_function(fn_id="waiting", trigger=durably.TriggerEvent(event="order/made"))
        async def wait(ctx: durably.Context) -> None:
            await ctx.step.wait_for_event(
                "paid", event="order/paid", if_exp="async.data.id == event.data.id", timeout=dt.timedelta(days=30)
            )
            woken.put_nowait((ctx.event.data["id"], time.perf_counter()))

        return [wait]

    async with in_process(directory, make_functions) as (client, settle):
        for start in range(0, waiting, BATCH):
            orders = range(start, min(start + BATCH, waiting))
            await client.send([durably.Event(name="order/made", data={"id": order}) for order in orders])
            await settle()

        async def wake(order: int) -> float:
            start = time.perf_counter()
            await client.send(durably.Event(name="order/paid", data={"id": order}))
            async with asyncio.timeout(PATIENCE_SECONDS):
                found, at = await woken.get()
            assert found == order
            await client.send(durably.Event(name="order/made", data={"id": order}))  # as many as before
            await settle()
            return at - start

        async def answer(question: dict[str, Any]) -> list[float]:
            return [await wake(order % waiting) for order in question["orders"]]

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
