"""The engine's side of ``exchanges``: a server that takes events and checkpoints, and calls the app back.

It stores nothing and decides nothing. It has the engine's libraries: aiohttp on both sides, uvloop below.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.children import Answerer, serve
from durably.engine.core.calls import CallData, build_body
from durably.engine.core.run_state import Call

from .load import EVENT_BODY, STEPS, step_memo

RUN_HEADER, CALL_HEADER = "x-run", "x-call"
_IDLE_SECONDS = 1.5
"""Seconds to keep an idle connection between turns: shorter than the app's server does."""


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    """The arguments are the app's URL, and the number of calls of a run."""
    app_url, calls = arguments[0], int(arguments[1])
    bodies = [call_body(number) for number in range(calls)]
    running: set[asyncio.Task[None]] = set()
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS), cookie_jar=aiohttp.DummyCookieJar()
    )

    async def run(number: str) -> None:
        for place, body in enumerate(bodies):
            headers = {RUN_HEADER: number, CALL_HEADER: str(place), "content-type": "application/json"}
            async with session.post(app_url, data=body, headers=headers) as response:
                await response.read()

    async def receive_event(request: web.Request) -> web.Response:
        await request.read()
        task = asyncio.create_task(run(request.headers[RUN_HEADER]))
        running.add(task)
        task.add_done_callback(running.discard)
        return web.json_response({"ids": ["01KJQ6PSG0X3MMG82QBDSTHXDR"], "status": 200})

    async def receive_checkpoint(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/e/key", receive_event)
    app.router.add_post("/checkpoint", receive_checkpoint)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()

    async def answer(question: dict[str, Any]) -> None:
        """It is asked nothing."""

    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", answer
    finally:
        await session.close()
        await runner.cleanup()


def call_body(memos: int) -> bytes:
    """The body of the call that has so many memos; at most those of all steps."""
    stored = [(f"{place:040x}", b'{"data":' + step_memo() + b"}") for place in range(min(memos, STEPS))]
    call = Call(generation=memos + 1, due=0)
    return build_body(
        CallData("01KJQ6PSG0X3MMG82QBDSTHXDR", "benchmark-three-steps", call, 5, False, [EVENT_BODY], stored)
    )


if __name__ == "__main__":
    serve(open_contender)
