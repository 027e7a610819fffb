"""A web app under uvicorn, on the event loop of the measurement, and its sync with an engine."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import urllib3
import uvicorn

from .calls import PATH


@asynccontextmanager
async def serve_app(app: Any) -> AsyncIterator[str]:
    """Yields the app's origin."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def sync_app(origin: str) -> None:
    """Have the app sync with its engine. Raises ``RuntimeError`` with the answer."""
    answer = await asyncio.to_thread(urllib3.request, "PUT", origin + PATH)
    if answer.status != 200:
        raise RuntimeError(f"syncing was answered with {answer.status}: {answer.data[:500]!r}")
