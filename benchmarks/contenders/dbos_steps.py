"""DBOS with its defaults, in the process that starts the runs: on SQLite, or on the PostgreSQL server at a port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dbos import DBOS

from benchmarks.children import Answerer, serve

from .load import charged, time_runs


@DBOS.step()
async def charge(number: int) -> dict[str, Any]:
    return charged(number)


@DBOS.workflow()
async def three_steps(number: int) -> int:
    for _ in range(3):
        await charge(number)
    return number


async def run_one(number: int) -> None:
    assert await three_steps(number) == number


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    url = f"postgresql://postgres@127.0.0.1:{arguments[0]}/dbos" if arguments else f"sqlite:///{directory}/dbos.sqlite"
    DBOS(config={"name": "benchmark", "system_database_url": url})
    DBOS.launch()
    try:
        yield "ready", lambda question: time_runs(run_one, question["runs"], question["at_once"])
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    serve(open_contender)
