"""Durably in one process: the engine, the functions, and what sends the events that start the runs."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.children import Answerer, serve
from benchmarks.serving import in_process

from .durably_runs import Runs


@asynccontextmanager
async def open_contender(directory: Path, arguments: list[str]) -> AsyncIterator[tuple[str, Answerer]]:
    """With the argument ``frozen``, the garbage collector ignores the objects of the started app."""
    runs = Runs()
    async with in_process(directory, runs.make_functions) as (client, settle):
        if "frozen" in arguments:
            gc.collect()
            gc.freeze()
        yield "ready", runs.answerer(client, settle)


if __name__ == "__main__":
    serve(open_contender)
