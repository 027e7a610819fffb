"""An engine with a commit log that stores a snapshot: how long commits take meanwhile, and before.

The question is the size of the database in bytes. The arguments are the port of the PostgreSQL server.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.children import Answerer, serve
from benchmarks.database import DATABASE
from durably.engine.log.log import CommitLog
from durably.engine.sqlite.engine import SqliteEngine
from durably.protocol.events import Event

_EVENT_BYTES = 100_000
_AT_ONCE = 10
_BEFORE_SECONDS = 3.0
_PAUSE_SECONDS = 0.002


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async def answer(question: dict[str, Any]) -> dict[str, list[float]]:
        url = f"postgresql://postgres@127.0.0.1:{arguments[0]}/postgres?log={directory.name}"
        log = CommitLog(url, snapshot_bytes=question["bytes"] // 2)  # The hexadecimal digits compress to a half.
        engine = await SqliteEngine.open(directory / DATABASE, log=log)

        async def time_commits(until: "asyncio.Future[Any]") -> list[float]:
            found = []
            while not until.done():
                began = time.perf_counter()
                await engine.send_events([Event(name="small", data={})])
                found.append(time.perf_counter() - began)
                await asyncio.sleep(_PAUSE_SECONDS)
            return found

        def wait_for_snapshot() -> None:
            while not log.store.snapshots():
                time.sleep(0.1)

        try:
            before = await time_commits(asyncio.ensure_future(asyncio.sleep(_BEFORE_SECONDS)))
            for _ in range(question["bytes"] // _EVENT_BYTES // _AT_ONCE + 1):
                data = [random.randbytes(_EVENT_BYTES // 2).hex() for _ in range(_AT_ONCE)]
                await engine.send_events([Event(name="large", data={"text": text}) for text in data])
            began = time.perf_counter()
            during = await time_commits(asyncio.ensure_future(asyncio.to_thread(wait_for_snapshot)))
            return {"before": before, "during": during, "seconds": [time.perf_counter() - began]}
        finally:
            await engine.close()
            await asyncio.to_thread(log.close)

    yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
