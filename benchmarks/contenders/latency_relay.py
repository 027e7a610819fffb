"""A bare engine: stores what is posted to it in one commit, answers, and posts it on to an app."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.children import Answerer, serve

from .commits import connect


@asynccontextmanager
async def open_relay(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    (app_url,) = arguments
    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession() as session:
        with closing(connect(directory / "relay.db")) as connection:
            connection.execute("CREATE TABLE events (key INTEGER PRIMARY KEY, body BLOB NOT NULL)")

            async def call(body: bytes) -> None:
                async with session.post(app_url, data=body) as response:
                    await response.read()

            async def receive(request: web.Request) -> web.Response:
                body = await request.read()
                connection.execute("INSERT INTO events (body) VALUES (?)", (body,))
                task = asyncio.create_task(call(body))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                return web.json_response({"status": 200})

            async def answer(question: dict[str, Any]) -> None:
                await asyncio.gather(*tasks)

            app = web.Application()
            app.router.add_post("/e/benchmark", receive)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}/e/benchmark", answer
            await runner.cleanup()


if __name__ == "__main__":
    serve(open_relay)
