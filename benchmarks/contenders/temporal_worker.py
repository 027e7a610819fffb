"""A worker that ships orders. Its argument is the address of Temporal's server; it works until it is closed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker

from benchmarks.children import Answerer, serve
from benchmarks.contenders.temporal_orders import QUEUE, OrderWorkflow


@asynccontextmanager
async def open_worker(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    async with Worker(await Client.connect(arguments[0]), task_queue=QUEUE, workflows=[OrderWorkflow]):
        yield "ready", _answer


async def _answer(question: dict[str, Any]) -> None:
    """Nothing is asked of it."""


if __name__ == "__main__":
    serve(open_worker)
