"""The three-step function written with Durably, whichever way it reaches the engine."""

import asyncio
import time
from typing import Any

import durably
from benchmarks.children import Answerer
from benchmarks.serving import Settle

from .load import PATIENCE_SECONDS, STEPS, charged, time_runs

EVENT = "benchmark/run"


async def charge(number: int) -> dict[str, Any]:
    return charged(number)


class Runs:
    def __init__(self) -> None:
        self._ended: dict[int, asyncio.Event] = {}
        self._begun_at = 0.0

    def make_functions(
        self, client: durably.Client, checkpointing: bool | durably.Checkpointing | None = None
    ) -> list[durably.Function[Any]]:
        @client.create_function(
            fn_id="three-steps", trigger=durably.TriggerEvent(event=EVENT), checkpointing=checkpointing
        )
        async def three_steps(ctx: durably.Context) -> None:
            self._begun_at = time.perf_counter()
            number = ctx.event.data["number"]
            for step in range(STEPS):
                await ctx.step.run(f"charge-{step}", charge, number)
            self._ended[number].set()

        return [three_steps]

    async def run_one(self, client: durably.Client, number: int) -> None:
        """To the last line of the function: that the run has ended is yet to be stored."""
        ended = self._ended[number] = asyncio.Event()
        await client.send(durably.Event(name=EVENT, data={"number": number}))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ended.wait()
        del self._ended[number]

    async def _measure_latency(self, client: durably.Client, settle: Settle) -> float:
        """Seconds from the event to the function's first line."""
        sent_at = time.perf_counter()
        await self.run_one(client, 0)
        seconds = self._begun_at - sent_at
        await settle()
        return seconds

    def answerer(self, client: durably.Client, settle: Settle) -> Answerer:
        async def answer(question: dict[str, Any]) -> float | list[float]:
            if "events" in question:
                return [await self._measure_latency(client, settle) for _ in range(question["events"])]
            start = time.perf_counter()
            await time_runs(lambda number: self.run_one(client, number), question["runs"], question["at_once"])
            await settle()
            return time.perf_counter() - start

        return answer
