"""The agent of ``agent`` in a durable function, in process. Its events are published to the run's channel."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import durably
from benchmarks.children import Answerer, serve
from benchmarks.serving import in_process
from durably.integrations.pydantic_ai import DurableSteps

from .agent import ANSWER, make_agent
from .load import time_runs

agent = make_agent(DurableSteps(stream_to="agent"))


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    functions: list[durably.Function[str]] = []

    def make_functions(client: durably.Client) -> list[durably.Function[Any]]:
        @client.create_function(fn_id="support", trigger=durably.TriggerEvent(event="support"))
        async def support(ctx: durably.Context) -> str:
            return (await agent.run("hello")).output

        functions.append(support)
        return [support]

    async def run_one(number: int) -> None:
        handle = await functions[0].start({})
        assert await handle.result() == ANSWER

    async with in_process(directory, make_functions):
        yield "ready", lambda question: time_runs(run_one, question["runs"], question["at_once"])


if __name__ == "__main__":
    serve(open_contender)
