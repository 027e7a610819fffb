"""The agent of ``agent`` alone: nothing is stored."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.children import Answerer, serve

from .agent import ANSWER, consume, make_agent
from .load import time_runs

agent = make_agent()


async def run_one(number: int) -> None:
    assert (await agent.run("hello", event_stream_handler=consume)).output == ANSWER


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    yield "ready", lambda question: time_runs(run_one, question["runs"], question["at_once"])


if __name__ == "__main__":
    serve(open_contender)
