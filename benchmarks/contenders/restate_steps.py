"""The three-step function on Restate, invoked over its HTTP ingress."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import restate

from benchmarks.children import Answerer, serve
from benchmarks.restate import restate_server

from .load import STEPS, charged, time_runs

service = restate.Service("Benchmark")


@service.handler()
async def three_steps(ctx: restate.Context, number: int) -> None:
    async def charge() -> dict[str, Any]:
        return charged(number)

    for step in range(STEPS):
        await ctx.run_typed(f"charge-{step}", charge)


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async with (
        restate_server(directory, service) as url,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):

        async def run_one(number: int) -> None:
            async with session.post(f"{url}/three_steps", json=number) as response:
                assert response.status == 200, await response.text()

        yield "ready", lambda question: time_runs(run_one, question["runs"], question["at_once"])


if __name__ == "__main__":
    serve(open_contender)
