"""The work that each contender does: runs of a function of three steps, so many of them at once."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

STEPS = 3
BATCH = 100
"""Events sent together."""

PATIENCE_SECONDS = 60.0
"""After which something went wrong, and the benchmark ends."""
EVENT_BODY = json.dumps({"name": "benchmark/run", "data": {"number": 1}}).encode()

RunOne = Callable[[int], Awaitable[None]]
"""Start the run of that number, and wait until it has ended."""


def event_data(number: int) -> dict[str, Any]:
    return {"order": f"order-{number}", "amount": 4200 + number, "currency": "EUR", "customer": {"id": number}}


def charged(number: int) -> dict[str, Any]:
    """The output of each step."""
    return {"id": f"charge-{number}", "amount": 4200 + number, "currency": "EUR", "paid": True}


def step_memo() -> bytes:
    """The output of a step, as JSON."""
    return json.dumps(charged(1)).encode()


async def time_runs(run_one: RunOne, runs: int, at_once: int) -> float:
    """Seconds that so many runs take, each started as soon as one of those before has ended."""
    numbers = iter(range(runs))

    async def work() -> None:
        for number in numbers:
            await run_one(number)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(at_once):
            workers.create_task(work())
    return time.perf_counter() - start
