"""The engine and its API in a process of its own: what ``durably dev`` has, without what prints runs.

It is ready with its origin, and the seconds that opening the database took, recovery included.
"""

import datetime as dt
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from durably.engine.api.http.connections import ConnectionLimits
from durably.engine.model.settings import EngineSettings
from durably.engine.sqlite.server import serve_database

from .children import Answerer, serve
from .database import DATABASE


@asynccontextmanager
async def open_engine(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[dict[str, Any], Answerer]]:
    """The arguments, if there are any: the seconds for which ended runs are kept, the number of connections."""
    settings = EngineSettings(retention=dt.timedelta(seconds=float(arguments[0])) if arguments else None)
    start = time.perf_counter()
    limits = ConnectionLimits(max_connections=int(arguments[1])) if len(arguments) > 1 else ConnectionLimits()
    async with await serve_database(directory / DATABASE, settings, port=0, limits=limits) as server:
        yield {"origin": server.origin, "opened": time.perf_counter() - start}, _answer


async def _answer(question: dict[str, Any]) -> None:
    """Nothing is asked of it."""


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # As `durably start` does.
    serve(open_engine)
