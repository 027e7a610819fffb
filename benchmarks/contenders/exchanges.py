"""The floor of runs over HTTP: the same exchanges between the same libraries, without an engine and an SDK.

A run is an event that urllib3 sends to aiohttp, calls that aiohttp makes to FastAPI under uvicorn, and checkpoints that
urllib3 sends to aiohttp. Bodies are as large as those of Durably's runs. Nothing is decoded, decided or stored.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi
import msgspec
import urllib3

from benchmarks.calls import PATH
from benchmarks.children import Answerer, Child, serve
from benchmarks.web import serve_app

from .exchanges_engine import CALL_HEADER, RUN_HEADER
from .load import EVENT_BODY, PATIENCE_SECONDS, STEPS, step_memo, time_runs

_THREADS = 8
"""Threads that send, as a client of Durably has them."""


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    """The argument is the number of checkpoints of a run, which then has one call; without it each step has a call."""
    checkpoints = int(arguments[0]) if arguments else 0
    calls = 1 if arguments else STEPS + 1
    pool, threads = urllib3.PoolManager(maxsize=_THREADS), ThreadPoolExecutor(_THREADS)
    ended: dict[int, asyncio.Event] = {}
    app = fastapi.FastAPI()
    ops = b"[" + b",".join([op()] * (STEPS // max(checkpoints, 1))) + b"]"

    async def post(path: str, body: bytes, **headers: str) -> None:
        url, loop = engine.ready + path, asyncio.get_running_loop()
        answer = await loop.run_in_executor(threads, lambda: pool.request("POST", url, body=body, headers=headers))
        assert answer.status == 200

    @app.post(PATH)
    async def receive_call(request: fastapi.Request) -> fastapi.Response:
        await request.body()
        for _ in range(checkpoints):
            await post("/checkpoint", ops)
        if int(request.headers[CALL_HEADER]) < calls - 1:
            return fastapi.Response(b"[" + op() + b"]", 206, {"content-type": "application/json"})
        ended[int(request.headers[RUN_HEADER])].set()
        return fastapi.Response(b"null", 200, {"content-type": "application/json"})

    async def run_one(number: int) -> None:
        ended[number] = asyncio.Event()
        await post("/e/key", EVENT_BODY, **{RUN_HEADER: str(number)})
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ended[number].wait()
        del ended[number]

    async def answer(question: dict[str, Any]) -> float:
        start = time.perf_counter()
        await time_runs(run_one, question["runs"], question["at_once"])
        return time.perf_counter() - start

    async with serve_app(app) as origin:
        engine = Child("benchmarks.contenders.exchanges_engine", directory / "engine", origin + PATH, str(calls))
        with engine:
            yield "ready", answer
    threads.shutdown()


def op() -> bytes:
    """A finished step as an SDK reports it."""
    names = {"displayName": "charge-0", "id": "0" * 40, "name": "charge-0", "op": "StepRun"}
    return msgspec.json.encode({**names, "data": msgspec.Raw(step_memo()), "opts": {}, "userland": {"id": "charge-0"}})


if __name__ == "__main__":
    serve(open_contender)
