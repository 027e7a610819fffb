"""Temporal's development server, with its defaults (which keep everything in memory alone), and a worker that
runs activities in the process that starts the runs."""

import datetime as dt
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from benchmarks.children import Answerer, serve
    from benchmarks.contenders.load import charged, time_runs
    from benchmarks.contenders.temporal_server import dev_server

QUEUE = "benchmark"
_TIMEOUT = dt.timedelta(seconds=30)


@activity.defn
async def charge(number: int) -> dict[str, Any]:
    return charged(number)


@workflow.defn
class ThreeSteps:
    @workflow.run
    async def run(self, number: int) -> int:
        for _ in range(3):
            await workflow.execute_activity(charge, number, start_to_close_timeout=_TIMEOUT)
        return number


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async with dev_server() as address:
        client = await Client.connect(address)
        ids = itertools.count()

        async def run_one(number: int) -> None:
            await client.execute_workflow(ThreeSteps.run, number, id=f"run-{next(ids)}", task_queue=QUEUE)

        async with Worker(client, task_queue=QUEUE, workflows=[ThreeSteps], activities=[charge]):
            yield "ready", lambda question: time_runs(run_one, question["runs"], question["at_once"])


if __name__ == "__main__":
    serve(open_contender)
