"""Starting the app anew when its source changes."""

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

import watchfiles

from durably.engine.embedded.api.discovery import AppDiscovery
from durably.protocol.errors import Error

from .app_process import AppProcess
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
    app: AppProcess, changes: SourceChanges, discovery: AppDiscovery, console: Console
) -> None:
    """Until cancelled. An app that does not start, or ends, is said, and waits for the next change."""
    running = asyncio.create_task(_report_end(app, console))
    try:
        while True:
            paths = await changes.next()
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            console.note(f"{_list_files(paths)} changed, restarting {app.target}")
            await app.stop()
            running = asyncio.create_task(_start(app, discovery, console))
    finally:
        running.cancel()


async def _start(app: AppProcess, discovery: AppDiscovery, console: Console) -> None:
    try:
        await app.start()
        console.note(f"{app.target} is up at {await app.sync(discovery)}")
    except Error as error:
        console.warn(f"{error.message or app.target + ' did not start'}; waiting for a change")
        return
    await _report_end(app, console)


async def _report_end(app: AppProcess, console: Console) -> None:
    console.warn(f"{await app.wait()}; waiting for a change")


def _list_files(paths: Iterable[str]) -> str:
    names = sorted({Path(path).name for path in paths})
    return names[0] if len(names) == 1 else f"{len(names)} files"
