"""Groups of parallel activities on Temporal's development server: seconds of a workflow."""

import asyncio
import datetime as dt
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from benchmarks.children import Answerer, serve
    from benchmarks.contenders.temporal_dev import QUEUE, charge
    from benchmarks.contenders.temporal_server import dev_server


@workflow.defn
class Groups:
    @workflow.run
    async def run(self, groups: int, width: int) -> None:
        timeout = dt.timedelta(minutes=1)
        for group in range(groups):
            if width == 1:
                await workflow.execute_activity(charge, group, start_to_close_timeout=timeout)
                continue
            await asyncio.gather(
                *(workflow.execute_activity(charge, number, start_to_close_timeout=timeout) for number in range(width))
            )


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async with dev_server() as address:
        client = await Client.connect(address)
        ids = itertools.count()

        async def answer(question: dict[str, Any]) -> float:
            shape = [question["groups"], question["width"]]
            start = time.perf_counter()
            await client.execute_workflow(Groups.run, args=shape, id=f"run-{next(ids)}", task_queue=QUEUE)
            return time.perf_counter() - start

        async with Worker(client, task_queue=QUEUE, workflows=[Groups], activities=[charge]):
            yield "ready", answer


if __name__ == "__main__":
    serve(open_contender)
