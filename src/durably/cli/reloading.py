"""Restarts of the app when its source changes."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import watchfiles

from durably.protocol.errors import Error

from .child_process import ChildProcess
from .console import Console


class SourceChanges:
    """Python files below a directory that have changed since ``start``, in batches."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._batches: asyncio.Queue[set[str]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for changes in watchfiles.awatch(self._directory, watch_filter=watchfiles.PythonFilter()):
            self._batches.put_nowait({path for _, path in changes})

    async def next(self) -> set[str]:
        return await self._batches.get()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


async def restart_on_changes(
    app: ChildProcess, changes: SourceChanges, console: Console, report_up: Callable[[], Awaitable[None]]
) -> None:
    """Until cancelled. An app that does not start, or ends, is said, and waits for the next change.

    ``report_up`` waits until the app that was started is up, and says so.
    """
    running = asyncio.create_task(_report_end(app, console))
    try:
        while True:
            paths = await changes.next()
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            console.note(f"{_list_files(paths)} changed, restarting {app.target}")
            await app.stop()
            running = asyncio.create_task(_start(app, console, report_up))
    finally:
        running.cancel()


async def _start(app: ChildProcess, console: Console, report_up: Callable[[], Awaitable[None]]) -> None:
    try:
        await app.start()
        await report_up()
    except Error as error:
        reason = " ".join(error.message.splitlines()) or f"{app.target} did not start"
        console.warn(f"{reason}; waiting for a change")
        return
    await _report_end(app, console)


async def _report_end(app: ChildProcess, console: Console) -> None:
    console.warn(f"{await app.wait()}; waiting for a change")


def _list_files(paths: Iterable[str]) -> str:
    names = sorted({Path(path).name for path in paths})
    return names[0] if len(names) == 1 else f"{len(names)} files"
