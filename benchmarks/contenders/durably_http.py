"""Durably over HTTP: the engine is a process of its own, the app runs under uvicorn in the process that sends the
events which start the runs. An argument sets the number of steps in a checkpoint, or lets the
app dial the engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import durably
from benchmarks.children import Answerer, serve
from benchmarks.serving import over_http

from .durably_runs import Runs


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    dials = arguments == ["connect"]
    checkpointing = durably.Checkpointing(buffered_steps=int(arguments[0])) if arguments and not dials else False
    runs = Runs()
    async with over_http(directory, lambda client: runs.make_functions(client, checkpointing), dials=dials) as (
        client,
        settle,
    ):
        yield "ready", runs.answerer(client, settle)


if __name__ == "__main__":
    serve(open_contender)
