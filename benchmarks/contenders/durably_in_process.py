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
    """With the argument ``all-objects``, each collection of all generations visits the old objects too.

    An engine excludes them (``durably.embedded.old_objects``), but not if the app has called ``gc.freeze()``.

    With ``log PORT``, commits go to a log of its own in the PostgreSQL server at this port.
    """
    runs, log = Runs(), None
    if arguments[:1] == ["log"]:
        log = f"postgresql://postgres@127.0.0.1:{arguments[1]}/postgres?log={directory.name}"
    if arguments == ["all-objects"]:
        gc.freeze()
    async with in_process(directory, runs.make_functions, log=log) as (client, settle):
        if arguments == ["all-objects"]:
            gc.unfreeze()
        yield "ready", runs.answerer(client, settle)


if __name__ == "__main__":
    serve(open_contender)
