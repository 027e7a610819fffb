"""One process of an app with the engine in its processes: the leader, or a follower of the one that started first.

With the argument ``idle`` it serves no functions. It counts the steps that it runs.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import durably
from benchmarks.children import Answerer, serve
from benchmarks.serving import in_process

from .load import BATCH, STEPS, charged, event_data

EVENT = "benchmark/run"


class Counted:
    def __init__(self) -> None:
        self.steps = 0

    def make_functions(self, client: durably.Client) -> list[durably.Function[Any]]:
        @client.create_function(fn_id="three-steps", trigger=durably.TriggerEvent(event=EVENT))
        async def three_steps(ctx: durably.Context) -> None:
            for step in range(STEPS):
                await ctx.step.run(f"charge-{step}", self.charge, ctx.event.data["amount"])

        return [three_steps]

    async def charge(self, number: int) -> dict[str, Any]:
        self.steps += 1
        return charged(number)


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    counted = Counted()
    # Child's own directory has its log; all processes share the parent's.
    async with in_process(directory.parent, (lambda _: []) if arguments == ["idle"] else counted.make_functions) as (
        client,
        settle,
    ):

        async def answer(question: dict[str, Any]) -> Any:
            """With ``runs``: the seconds in which so many end. Otherwise the steps run here since the last question."""
            if "runs" not in question:
                steps, counted.steps = counted.steps, 0
                return steps
            start = time.perf_counter()
            for first in range(0, question["runs"], BATCH):
                numbers = range(first, min(first + BATCH, question["runs"]))
                await client.send([durably.Event(name=EVENT, data=event_data(number)) for number in numbers])
            await settle()
            return time.perf_counter() - start

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
