"""Temporal's development server, with its defaults (which keep everything in memory alone), and a worker that
runs activities in the process that starts the runs."""

import asyncio
import datetime as dt
import itertools
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from benchmarks.children import Answerer, serve
    from benchmarks.contenders.load import charged, time_runs

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
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = await asyncio.to_thread(_start_server, port)
    try:
        client = await _connect(f"127.0.0.1:{port}", server)
        ids = itertools.count()

        async def run_one(number: int) -> None:
            await client.execute_workflow(ThreeSteps.run, number, id=f"run-{next(ids)}", task_queue=QUEUE)

        async with Worker(client, task_queue=QUEUE, workflows=[ThreeSteps], activities=[charge]):
            yield "ready", lambda question: time_runs(run_one, question["runs"], question["at_once"])
    finally:
        server.terminate()
        await asyncio.to_thread(server.wait)


def _start_server(port: int) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).parent / "temporal"
    return subprocess.Popen([program, "server", "start-dev", "--headless", "--port", str(port), "--log-level", "error"])


async def _connect(address: str, server: subprocess.Popen[bytes]) -> Client:
    while server.poll() is None:
        try:
            return await Client.connect(address)
        except (RPCError, RuntimeError):  # which is what it raises while nobody listens
            await asyncio.sleep(0.1)
    raise RuntimeError(f"Temporal's development server ended with {server.returncode}")


if __name__ == "__main__":
    serve(open_contender)
