"""The engine and its API in a process of its own: what ``durably dev`` has, without what prints runs.

It is ready with its origin, and the seconds that opening took. Asked whatever, it answers once no run is moving.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from durably.engine.embedded.api.server import EngineServer
from durably.engine.embedded.settings import EngineSettings

from .children import Answerer, serve

_LOOK_AGAIN_SECONDS = 0.002


@asynccontextmanager
async def open_engine(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[tuple[str, float], Answerer]]:
    path = directory / "durably.db"
    start = time.perf_counter()
    async with await EngineServer.open(path, EngineSettings(), port=0) as server:
        opened = time.perf_counter() - start
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:

            async def answer(question: dict[str, Any]) -> None:
                while connection.execute("SELECT 1 FROM heads WHERE is_moving LIMIT 1").fetchone():
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)

            yield (server.origin, opened), answer


if __name__ == "__main__":
    serve(open_engine)
