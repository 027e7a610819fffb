"""Durably over HTTP: the engine is a process of its own, the app runs under uvicorn in the process that sends the
events which start the runs. ``--checkpointing`` hands steps over while a call goes on."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi

import durably
import durably.fast_api
from benchmarks.children import Answerer, Child, serve
from benchmarks.web import serve_app, sync_app

from .load import STEPS, charged, time_runs

EVENT = "benchmark/run"


async def charge(number: int) -> dict[str, Any]:
    return charged(number)


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    with Child("benchmarks.engine_process", directory / "engine") as engine:
        origin, _ = engine.ready
        client = durably.Client(app_id="benchmark", is_production=False, api_base_url=origin, event_api_base_url=origin)
        ended: dict[int, asyncio.Event] = {}

        @client.create_function(fn_id="three-steps", trigger=durably.TriggerEvent(event=EVENT))
        async def three_steps(ctx: durably.Context) -> None:
            number = ctx.event.data["number"]
            for step in range(STEPS):
                await ctx.step.run(f"charge-{step}", charge, number)
            ended[number].set()

        async def run_one(number: int) -> None:
            ended[number] = asyncio.Event()
            await client.send(durably.Event(name=EVENT, data={"number": number}))
            await ended[number].wait()

        async def answer(question: dict[str, Any]) -> float:
            start = time.perf_counter()
            await time_runs(run_one, question["runs"], question["at_once"])
            await asyncio.to_thread(engine.ask)  # the last runs' ends are being stored
            return time.perf_counter() - start

        app = fastapi.FastAPI()
        durably.fast_api.serve(app, client, [three_steps])
        async with serve_app(app) as url:
            await sync_app(url)
            yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
