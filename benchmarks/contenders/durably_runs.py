"""The three-step function written with Durably, whichever way it reaches the engine."""

import asyncio
from typing import Any

import durably

from .load import STEPS, charged

EVENT = "benchmark/run"


async def charge(number: int) -> dict[str, Any]:
    return charged(number)


class Runs:
    """``function`` is to be served for ``client``."""

    def __init__(self, client: durably.Client, *, checkpointing: bool | durably.Checkpointing | None = None) -> None:
        self._client = client
        self._ended: dict[int, asyncio.Event] = {}

        @client.create_function(
            fn_id="three-steps", trigger=durably.TriggerEvent(event=EVENT), checkpointing=checkpointing
        )
        async def three_steps(ctx: durably.Context) -> None:
            number = ctx.event.data["number"]
            for step in range(STEPS):
                await ctx.step.run(f"charge-{step}", charge, number)
            self._ended[number].set()

        self.function = three_steps

    async def run_one(self, number: int) -> None:
        """To the last line of the function: that the run has ended is yet to be stored."""
        ended = self._ended[number] = asyncio.Event()
        await self._client.send(durably.Event(name=EVENT, data={"number": number}))
        await ended.wait()
