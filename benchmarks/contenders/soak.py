"""An app of the engine at the origin that is the argument; asked, it makes runs for so many ``seconds``."""

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.children import Answerer, serve
from benchmarks.serving import served

from .durably_runs import Runs
from .load import time_runs

AT_ONCE = 20


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    runs, numbers = Runs(), itertools.count()
    async with served(arguments[0], runs.make_functions) as client:

        async def answer(question: dict[str, Any]) -> int:
            """The number of runs so far."""
            until = time.perf_counter() + question["seconds"]

            async def run_some(_: int) -> None:
                while time.perf_counter() < until:
                    await runs.run_one(client, next(numbers))

            await time_runs(run_some, AT_ONCE, AT_ONCE)
            return next(numbers)

        yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
