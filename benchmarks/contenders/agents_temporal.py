"""The agent of ``agent`` in a workflow on Temporal's development server, by pydantic-ai's own integration."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from pydantic_ai.durable_exec.temporal import PydanticAIPlugin, PydanticAIWorkflow, TemporalDurability

    from benchmarks.children import Answerer, serve
    from benchmarks.contenders.agent import ANSWER, consume, make_agent
    from benchmarks.contenders.load import time_runs
    from benchmarks.contenders.temporal_server import dev_server

QUEUE = "benchmark"
agent = make_agent(TemporalDurability(event_stream_handler=consume))


@workflow.defn
class Support(PydanticAIWorkflow):
    __pydantic_ai_agents__ = (agent,)

    @workflow.run
    async def run(self) -> str:
        return (await agent.run("hello")).output


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async with dev_server() as address:
        client = await Client.connect(address, plugins=[PydanticAIPlugin()])
        ids = itertools.count()

        async def run_one(number: int) -> None:
            assert await client.execute_workflow(Support.run, id=f"run-{next(ids)}", task_queue=QUEUE) == ANSWER

        async with Worker(client, task_queue=QUEUE, workflows=[Support]):
            yield "ready", lambda question: time_runs(run_one, question["runs"], question["at_once"])


if __name__ == "__main__":
    serve(open_contender)
