"""Durably over HTTP: the engine is a process of its own, the app runs under uvicorn in the process that sends the
events which start the runs. An argument tells how many steps are handed over together while a call goes on."""

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

from .durably_runs import Runs
from .load import time_runs


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    checkpointing = durably.Checkpointing(buffered_steps=int(arguments[0])) if arguments else False
    with Child("benchmarks.engine_process", directory / "engine") as engine:
        origin, _ = engine.ready
        client = durably.Client(
            app_id="benchmark", is_production=False, api_base_url=origin, event_api_base_url=origin
        )
        runs = Runs(client, checkpointing=checkpointing)

        async def answer(question: dict[str, Any]) -> float:
            start = time.perf_counter()
            await time_runs(runs.run_one, question["runs"], question["at_once"])
            await asyncio.to_thread(engine.ask)  # the last runs' ends are being stored
            return time.perf_counter() - start

        app = fastapi.FastAPI()
        durably.fast_api.serve(app, client, [runs.function])
        async with serve_app(app) as url:
            await sync_app(url)
            yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
