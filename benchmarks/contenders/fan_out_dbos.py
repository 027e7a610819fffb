"""Groups of parallel steps on DBOS, on SQLite: seconds of a run."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dbos import DBOS

from benchmarks.children import Answerer, serve

from .dbos_steps import charge


@DBOS.workflow()
async def groups(count: int, width: int) -> None:
    for group in range(count):
        if width == 1:
            await charge(group)
            continue
        await asyncio.gather(*(charge(number) for number in range(width)))


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    DBOS(config={"name": "benchmark", "system_database_url": f"sqlite:///{directory}/dbos.sqlite"})
    DBOS.launch()

    async def answer(question: dict[str, Any]) -> float:
        start = time.perf_counter()
        await groups(question["groups"], question["width"])
        return time.perf_counter() - start

    try:
        yield "ready", answer
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    serve(open_contender)
