"""The agent of ``agent`` in a workflow of DBOS on SQLite, by pydantic-ai's own integration."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dbos import DBOS
from pydantic_ai.durable_exec.dbos import DBOSDurability

from benchmarks.children import Answerer, serve

from .agent import ANSWER, consume, make_agent
from .load import time_runs


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    DBOS(config={"name": "benchmark", "system_database_url": f"sqlite:///{directory}/dbos.sqlite"})
    agent = make_agent(DBOSDurability(event_stream_handler=consume))

    @DBOS.workflow()
    async def support() -> str:
        return (await agent.run("hello")).output

    async def run_one(number: int) -> None:
        assert await support() == ANSWER

    DBOS.launch()
    try:
        yield "ready", lambda question: time_runs(run_one, question["runs"], question["at_once"])
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    serve(open_contender)
